"""Strategy sigopt against the official in-memory service, in its own environment and behind a local HTTP server."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distune.config.job import StrategySpec
from distune.config.secret import Secret
from distune.errors import DistuneError, UsageError
from distune.space.capability import Recipe
from distune.strategies.registry import strategy_class
from distune.strategies.sigopt_service import environment
from tests.strategies.harness import PLAIN, AdditiveModel, mixed_space, play, space
from tests.strategies.sigopt_front import EXPERIMENT, PROJECT, TOKEN, Front, front

EXAMPLE = Path(__file__).parents[2] / "launch" / "examples" / "digits.yaml"

COSTLY = AdditiveModel(cost={"op1": 0.02})
"""op1 must go back to fp32 for the criterion to be met."""


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGOPT_API_TOKEN", "SIGOPT_PROJECT", "SIGOPT_API_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Front]:
    with front() as state:
        yield state


def http(server: Front, **more: Any) -> dict[str, Any]:
    """Settings that lead to ``server``."""
    return {"api_url": server.url, "sigopt_api_token": TOKEN, "sigopt_project_id": PROJECT, "fallback": True, **more}


def check(**kwargs: Any) -> None:
    strategy_class(StrategySpec("sigopt")).check(kwargs, "sigopt")


# ------------------------------------------------------------------------------------------- before anything is run


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"sigopt_project_id": "p"}, "SIGOPT_API_TOKEN"),
        ({"sigopt_api_token": "t"}, "'sigopt_project_id' is required"),
        ({"sigopt_api_token": "t", "sigopt_project_id": "My Project"}, "lowercase letters"),
        ({"sigopt_api_token": "t", "sigopt_project_id": "p", "api_url": "ftp://x"}, "http://"),
        ({"sigopt_api_token": "t", "sigopt_project_id": "p", "api_url": "http://me:pw@x"}, "user name"),
        ({"sigopt_api_token": "t", "sigopt_projct_id": "p"}, "did you mean 'sigopt_project_id'"),
        ({"driver": "light"}, "driver must be one of http, lite"),
        ({"driver": "lite", "parallel_bandwidth": 2}, "parallel_bandwidth must be 1"),
        ({"driver": "lite", "sigopt_experiment_id": "3"}, "in memory"),
        ({"driver": "lite", "parallel_bandwidth": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_told_before_anything_runs(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        check(**kwargs)


def test_token_and_project_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGOPT_API_TOKEN", "t")
    monkeypatch.setenv("SIGOPT_PROJECT", "p")
    check()


def test_lite_without_its_environment_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="distune doctor --install sigoptlite"):
        check(driver="lite")


def test_an_interpreter_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = tmp_path / "python2"
    python.write_text("#!/bin/sh\necho 2 7\n")
    python.chmod(0o755)
    with pytest.raises(UsageError, match=r"is Python 2\.7; sigoptlite needs"):
        environment.install(str(python))


# ------------------------------------------------------------------------------------------------------- the token


def test_a_secret_is_neither_shown_nor_sent() -> None:
    spec = StrategySpec("sigopt", {"sigopt_api_token": TOKEN, "driver": "http"})
    token = spec.kwargs["sigopt_api_token"]
    assert TOKEN not in repr(spec)
    assert TOKEN not in f"{token} {token!r}"
    assert TOKEN.encode() not in pickle.dumps(spec)
    assert token.reveal() == TOKEN
    assert token == Secret(TOKEN)
    assert not Secret()


@pytest.mark.full
def test_the_token_is_in_no_file_and_no_output(server: Front, tmp_path: Path) -> None:
    settings = {
        "name": "sigopt",
        "sigopt_api_token": TOKEN,
        "sigopt_project_id": PROJECT,
        "strategy_kwargs.api_url": server.url,
        "strategy_kwargs.fallback": "true",
    }
    done = distune_run(tmp_path, settings, max_trials=3)
    assert done.returncode in (0, 3, 4), done.stderr
    assert len(server.observations) == 3
    assert server.experiment["metadata"]["model"] == "digits_dwcnn"
    assert server.experiment["metadata"]["dataset"] == "Npz"
    assert TOKEN not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "journal.jsonl" for path in files)
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    calls = len(server.calls)
    again = distune_run(tmp_path, {**settings, "sigopt_api_token": "ANOTHER"}, max_trials=3)
    assert again.returncode == done.returncode, again.stderr
    assert len(server.calls) == calls  # a finished run asks nobody anything


def distune_run(workspace: Path, settings: dict[str, str], max_trials: int) -> subprocess.CompletedProcess[str]:
    """``distune run`` of the embedded example; the token goes by the environment or a key as in a file."""
    overrides = {f"tuning.strategy.{key}": value for key, value in settings.items()}
    overrides |= {"tuning.exit_policy.max_trials": str(max_trials), "tuning.exit_policy.timeout": "10000"}
    words = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "distune", "run", str(EXAMPLE), "--workspace", str(workspace), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


# ------------------------------------------------------------------------------------------------- sigoptlite itself


@pytest.fixture
def lite() -> dict[str, Any]:
    environment.install()
    return {"driver": "lite", "fallback": True}


@pytest.mark.full
def test_lite_finds_configs_that_meet(lite: dict[str, Any]) -> None:
    played = play("sigopt", mixed_space(4), COSTLY, max_trials=25, timeout=1.0, **lite)
    assert played.winner is not None
    assert "op1" not in played.quantized()
    assert any(f"best assignments are those of trial {played.winner.id} " in text for text in played.told)
    assert len(set(played.hashes)) == len(played.hashes) <= 25


@pytest.mark.full
def test_lite_gives_the_same_run_for_the_same_seed(lite: dict[str, Any]) -> None:
    runs = [play("sigopt", mixed_space(4), COSTLY, max_trials=12, timeout=1.0, **lite).hashes for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.full
def test_lower_is_better_is_a_constraint_from_above(lite: dict[str, Any]) -> None:
    loss = AdditiveModel(cost={"op1": 0.02}, higher_is_better=False)
    played = play("sigopt", mixed_space(4), loss, max_trials=25, timeout=1.0, **lite)
    assert played.winner is not None
    assert "op1" not in played.quantized()


@pytest.mark.full
def test_a_small_space_ends(lite: dict[str, Any]) -> None:
    played = play("sigopt", space({"a": "Conv"}), COSTLY, max_trials=100, timeout=1.0, driver="lite")
    assert len(played.trials) == 4
    assert "space exhausted: every tuning config was judged" in played.told


@pytest.mark.full
def test_a_run_is_resumed_from_what_the_service_answered(lite: dict[str, Any]) -> None:
    """What was journalled is not asked again, and the new in-memory service is told of it."""
    whole: dict[str, Any] = {}
    first = play("sigopt", mixed_space(4), COSTLY, max_trials=12, timeout=1.0, outside=recorder(whole), **lite)
    keys = list(whole)
    cut = {key: whole[key] for key in keys[: keys.index("sigopt observation 7")]}
    known = dict(cut)
    second = play("sigopt", mixed_space(4), COSTLY, max_trials=12, timeout=1.0, outside=recorder(cut), **lite)
    assert {key: cut[key] for key in known} == known
    kept = len({str(answer["assignments"]) for key, answer in known.items() if "suggestion" in key})
    assert second.hashes[:kept] == first.hashes[:kept]
    assert len(second.trials) > kept


def recorder(known: dict[str, Any]) -> Any:
    def outside(key: str, work: Any) -> Any:
        if key not in known:
            known[key] = work()
        return known[key]

    return outside


# ------------------------------------------------------------------------------------------------------------- HTTP


@pytest.mark.full
def test_the_experiment_is_what_the_job_says(server: Front) -> None:
    play("sigopt", mixed_space(4), COSTLY, max_trials=9, timeout=1.0, **http(server))
    made = server.experiment
    assert (made["name"], made["project"], made["observation_budget"]) == ("nc-tune", PROJECT, 9)
    assert [parameter["type"] for parameter in made["parameters"]] == ["categorical"] * 4
    assert made["metrics"] == [
        {"name": "accuracy", "objective": "maximize", "strategy": "constraint", "threshold": pytest.approx(0.891)},
        {"name": "latency", "objective": "minimize", "strategy": "optimize"},
    ]
    assert len(server.observations) == 9
    assert all(tag["host"] for tag in server.tags)
    assert server.run["state"] == "completed"
    assert server.run["metadata"] == {"experiment": EXPERIMENT}


@pytest.mark.full
def test_failed_trials_are_failed_observations(server: Front) -> None:
    played = play(
        "sigopt",
        mixed_space(4),
        COSTLY,
        max_trials=3,
        timeout=1.0,
        accuracies=[0.9, float("nan"), 0.5, 0.6],
        **http(server),
    )
    assert len(played.trials) == 3
    assert [observation["failed"] for observation in server.observations] == [True, False, False]
    assert "values" not in server.observations[0]


@pytest.mark.full
def test_several_suggestions_are_judged_in_one_stage(server: Front) -> None:
    played = play("sigopt", mixed_space(4), COSTLY, max_trials=8, timeout=1.0, **http(server, parallel_bandwidth=2))
    assert server.experiment["parallel_bandwidth"] == 2
    assert {len(list(stage.candidates)) for stage in played.stages} == {2}


@pytest.mark.full
def test_trials_of_recipes_that_were_settled_before_are_not_the_experiments(server: Front) -> None:
    alphas = Recipe("smooth_quant", False, (0.3, 0.5, 0.7), leads=True)
    costly = AdditiveModel(default_cost=0.5)
    known = mixed_space(3, PLAIN, recipes=(alphas,), known_recipes=(alphas,))
    played = play("sigopt", known, costly, max_trials=8, timeout=1.0, **http(server))
    assert [trial.stage for trial in played.trials[:3]] == ["smooth_quant"] * 3
    assert len(server.observations) == server.experiment["observation_budget"] == 5
    spent = next(text for text in played.told if "budget of 5 observations is spent" in text)
    assert 0 < 8 - len(played.trials) < 5
    assert f", {8 - len(played.trials)} of them on fp32 or on configs that were judged before" in spent


@pytest.mark.full
def test_a_running_experiment_is_joined_by_its_id(server: Front) -> None:
    play("sigopt", mixed_space(4), COSTLY, max_trials=3, timeout=1.0, **http(server))
    server.calls.clear()
    joined = http(server, sigopt_experiment_id=EXPERIMENT)
    play("sigopt", mixed_space(4), COSTLY, max_trials=3, timeout=1.0, **joined)
    assert ("POST", "experiments") not in server.calls
    assert len(server.observations) == 6
    with pytest.raises(UsageError, match="another model"):
        play("sigopt", mixed_space(5), COSTLY, max_trials=3, timeout=1.0, **joined)


@pytest.mark.full
def test_refusals_are_the_users_to_mend(server: Front) -> None:
    with pytest.raises(UsageError, match="there is no project 'other'"):
        play("sigopt", mixed_space(4), COSTLY, **http(server, sigopt_project_id="other"))
    with pytest.raises(UsageError, match="check sigopt_api_token") as wrong:
        play("sigopt", mixed_space(4), COSTLY, **http(server, sigopt_api_token="wrong-token"))
    assert "wrong-token" not in str(wrong.value)


def test_a_server_that_is_not_there_is_an_error_that_names_it() -> None:
    settings = {"api_url": "http://127.0.0.1:9", "sigopt_api_token": TOKEN, "sigopt_project_id": PROJECT}
    with pytest.raises(DistuneError, match=r"http://127\.0\.0\.1:9 cannot be asked") as failed:
        play("sigopt", mixed_space(4), COSTLY, **settings)
    assert TOKEN not in str(failed.value)


def test_the_client_can_be_used_from_any_folder(tmp_path: Path) -> None:
    """It derives a project from the folder's name when it is imported, and ``/`` has none."""
    code = "from distune.strategies.sigopt_service.experiment import _client; _client('p')"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
