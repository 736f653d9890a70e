"""``distune run`` on real, tiny ONNX models: what a user sees, finds on disk, and gets as exit code."""

from __future__ import annotations

import json
import re
import signal
from itertools import groupby
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime as ort
import pytest

from distune.cli.main import main
from distune.journal.journal import read_records
from distune.journal.replay import same_decisions
from distune.report.result import RunResult
from distune.report.result_schema import schema
from tests.cli.jobs import Job, environment, gated, judged, plain, running, scripted, start
from tests.config.test_wrong import marked
from tests.config.wrong import CORPUS, Wrong

pytestmark = pytest.mark.timeout(120)

BASIC = (
    "default",
    "all recipes",
    "op-type-wise",
    "recipes one by one",
    "instance-wise fallback to fp32",
    "accumulated fallback to fp32",
)
"""The stages of the document, in its order; there is no block in these models."""

Capture = pytest.CaptureFixture[str]


def by_stage(result: RunResult) -> list[tuple[str, int]]:
    """Stages that judged something, with the number of trials."""
    return [(stage, len(list(trials))) for stage, trials in groupby(trial.stage for trial in result.trials)]


def valid(job: Job) -> RunResult:
    """The result, after its file was checked against the schema."""
    jsonschema.Draft202012Validator(schema()).validate(json.loads((job.workspace / "result.json").read_text()))
    return job.result()


# --------------------------------------------------------------------------------------------- sequences of accuracies


@pytest.fixture(scope="module")
def all_miss(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """Trials of each stage where none meets."""
    job = scripted(tmp_path_factory.mktemp("all_miss"), 1.0, 0.5)
    assert main(job.arguments("--quiet")) == 3
    result = valid(job)
    assert (result.outcome, result.best is not None and result.best.best_effort) == ("not_met", True)
    assert job.calls == 1 + len(result.trials), "the eval_func is called once for fp32 and once a trial"
    return by_stage(result)


def test_the_stages_are_those_of_the_document(all_miss: list[tuple[str, int]]) -> None:
    assert tuple(stage for stage, _ in all_miss) == BASIC


@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.parametrize("stage", BASIC)
def test_a_sequence_of_accuracies_ends_in_the_stage_that_meets(
    tmp_path: Path, all_miss: list[tuple[str, int]], stage: str, position: str
) -> None:
    names = [name for name, _ in all_miss]
    before = sum(count for _, count in all_miss[: names.index(stage)])
    misses = before if position == "first" else before + dict(all_miss)[stage] - 1
    job = scripted(tmp_path, 1.0, *[0.5] * misses, 0.95)
    assert main(job.arguments("--quiet")) == 0
    result = valid(job)
    assert (result.outcome, result.trials[-1].stage, len(result.trials)) == ("met", stage, misses + 1)
    assert result.best is not None
    assert (result.best.trial, result.best.accuracy) == (misses + 1, 0.95)
    assert job.calls == misses + 2


@pytest.mark.parametrize(
    ("baseline", "criterion", "meeting", "missing"),
    [
        (1.0, {"absolute": 0.125}, 0.875, 0.8749),
        (0.5, {"relative": 0.25}, 0.375, 0.3749),
        (2.0, {"relative": 0.25, "higher_is_better": False}, 2.5, 2.5001),
        (0.0, {"relative": 0.1}, 0.0, -0.0001),
        (0.0, {"absolute": 0.25}, -0.25, -0.26),
        (-4.0, {"relative": 0.25}, -5.0, -5.001),
        (-4.0, {"relative": 0.25, "higher_is_better": False}, -3.0, -2.99),
    ],
)
def test_exactly_on_target_meets(
    tmp_path: Path, baseline: float, criterion: dict[str, float], meeting: float, missing: float
) -> None:
    for name, accuracy, code in (("meeting", meeting, 0), ("missing", missing, 4)):
        job = scripted(tmp_path / name, baseline, accuracy)
        job.document["tuning"] |= {"accuracy_criterion": criterion, "exit_policy": {"max_trials": 1}}
        assert main(job.arguments("--quiet")) == code
        assert valid(job).trials[0].verdict == ("met" if code == 0 else "not_met")


def test_a_budget_that_ends_in_a_stage_is_exit_code_4(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0, 0.5)
    job.document["tuning"]["strategy"] = {"name": "basic", "strategy_kwargs": {"op_type_wise_trials": 16}}
    assert main(job.arguments("--quiet", "--set", "tuning.exit_policy.max_trials=5")) == 4
    result = valid(job)
    assert (result.outcome, len(result.trials), job.calls) == ("budget_spent", 5, 6)
    assert (job.workspace / "best" / "model.onnx").exists()


def test_an_accuracy_that_is_no_number_never_meets(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0, "nan")
    assert main(job.arguments("--quiet")) == 3
    assert {trial.accuracy for trial in valid(job).trials} == {None}


# --------------------------------------------------------------------------------------------------------- user's code


def test_an_eval_func_that_fails_on_fp32_is_the_users_to_mend(tmp_path: Path, capsys: Capture) -> None:
    job = scripted(tmp_path, "raise")
    assert main(job.arguments()) == 2
    said = capsys.readouterr().err
    assert "ValueError: planted in the user's code" in said
    assert f'{job.folder / "score.py"}", line' in said
    assert "in given" in said
    result = valid(job)
    assert (result.outcome, result.best) == ("failed", None)
    assert "planted in the user's code" in result.failure
    assert "distune/" not in said.replace(str(job.folder), ""), "of the traceback only the user's part"


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_an_eval_func_that_fails_later_fails_that_trial(tmp_path: Path, isolation: str) -> None:
    job = scripted(tmp_path, 1.0, "raise", "raise", 0.95, isolation=isolation)
    assert main(job.arguments("--quiet")) == 0
    result = valid(job)
    assert result.trials[0].verdict == "failed"
    assert "planted in the user's code" in result.trials[0].reason
    assert result.trials[-1].verdict == "met"


# ---------------------------------------------------------------------------------------------------- a planted bad op


@pytest.mark.parametrize("planted", ["fc1", "fc2", "fc3"])
@pytest.mark.parametrize("isolation", ["none", "process"])
def test_the_planted_op_leads_the_fallback_and_the_best_model_is_as_good_as_told(
    tmp_path: Path, planted: str, isolation: str
) -> None:
    job = judged(tmp_path, planted, isolation=isolation)
    job.document["tuning"]["refine_trials"] = 8
    # The recipes and the op-type-wise stage may mend it by chance of their own; here fallback is looked at.
    job.document["tuning"]["strategy"] = {"name": "basic", "strategy_kwargs": {"op_type_wise_trials": 0}}
    job.document["quantization"]["recipes"] = {
        "first_conv_or_matmul_quantization": True,
        "last_conv_or_matmul_quantization": True,
    }
    assert main(job.arguments("--quiet")) == 0
    result = valid(job)
    assert max(result.op_impact, key=lambda group: result.op_impact[group]) == planted
    assert result.best is not None
    assert planted in result.best.fallback_ops
    if result.fallback_order:
        assert result.fallback_order[0] == planted

    session = ort.InferenceSession(job.workspace / "best" / "model.onnx")
    test = np.load(job.folder / "test.npz")
    again = float((session.run(None, {"x": test["x"]})[0].argmax(1) == test["labels"]).mean())
    assert again == result.best.accuracy
    assert again >= 0.95
    assert (job.workspace / "best" / "model.onnx").stat().st_size == result.best.size_bytes


# ------------------------------------------------------------------------------------------------------- what is shown


def test_json_alone_is_on_standard_output(tmp_path: Path, capfd: Capture) -> None:
    job = scripted(tmp_path, 1.0, 0.5, 0.95, isolation="process")
    assert main(job.arguments("--json")) == 0
    out, err = capfd.readouterr()
    assert RunResult.from_json(out) == job.result()
    assert out == (job.workspace / "result.json").read_text() or json.loads(out) == job.result().to_plain()
    assert "met" in err


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_what_user_code_prints_is_not_in_the_json(tmp_path: Path, isolation: str) -> None:
    job = scripted(tmp_path, 1.0, 0.95, isolation=isolation)
    text = (job.folder / "score.py").read_text()
    loud = 'import os; print("said here"); os.write(1, b"raw"); os.system("echo shell")'
    said = f"def given(model):\n    {loud}"
    (job.folder / "score.py").write_text(text.replace("def given(model):", said))
    done = start(job.command("--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == job.result().to_plain()
    if isolation == "none":
        assert all(word in done.stderr for word in ("said here", "raw", "shell"))


def test_without_json_standard_output_stays_empty(tmp_path: Path, capfd: Capture) -> None:
    assert main(scripted(tmp_path, 1.0, 0.95).arguments()) == 0
    assert capfd.readouterr().out == ""


def test_without_evaluation_the_model_is_quantized_once(tmp_path: Path) -> None:
    job = plain(tmp_path)
    assert main(job.arguments("--quiet")) == 0
    result = valid(job)
    assert result.outcome == "not_judged"
    assert result.baseline.accuracy is None
    assert result.best is not None
    assert (result.best.accuracy, result.best.ops_quantized) == (None, 3)
    ort.InferenceSession(job.workspace / "best" / "model.onnx")


def test_recipes_that_the_user_fixed_are_not_tuned(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0, 0.5)
    main(job.arguments("--quiet", "--set", "tuning.exit_policy.max_trials=3"))
    tuned = {stage for stage, _ in by_stage(job.result()) if "recipes" in stage}
    assert tuned
    job.document["quantization"]["recipes"] = {
        "first_conv_or_matmul_quantization": True,
        "last_conv_or_matmul_quantization": True,
    }
    main(job.arguments("--quiet", "--fresh"))
    assert not {stage for stage, _ in by_stage(job.result()) if "recipes" in stage}


def test_set_overrides_any_key_and_is_validated(tmp_path: Path, capsys: Capture) -> None:
    job = scripted(tmp_path, 1.0, 0.95)
    assert main(job.arguments("--set", "tuning.strategy.name=basik")) == 2
    assert "did you mean 'basic'" in capsys.readouterr().err
    assert main(job.arguments("--quiet", "--set", "tuning.strategy.name=mse", "--set", "tuning.random_seed=7")) == 0
    assert (job.result().strategy, job.result().seed) == ("mse", 7)


WRONG = [case for case in CORPUS if case.name not in ("setting of a strategy", "strategy of a later version")][::4]
"""A handful; of the corpus' strategies only the names are real."""


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_a_wrong_configuration_is_exit_code_2_without_a_traceback(
    tmp_path: Path, case: Wrong, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.onnx", "calib.npz"):
        Path(name).touch()
    text, places = marked(case.text)
    Path("cfg.yaml").write_text(text, encoding="utf-8")
    assert main(["run", "cfg.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    for (line, column), hint in zip(places, case.hints, strict=True):
        assert f"cfg.yaml:{line}:{column}: " in err
        assert hint in err
    assert not Path("distune_workspace").exists()


def test_a_model_that_is_no_model_is_exit_code_2(tmp_path: Path, capsys: Capture) -> None:
    for isolation in ("none", "process"):
        job = scripted(tmp_path / isolation, 1.0, isolation=isolation)
        (job.folder / "model.onnx").write_bytes(b"not a model")
        assert main(job.arguments("--quiet")) == 2
        said = capsys.readouterr().err
        assert "model.onnx" in said
        assert "defect of distune" not in said


def test_the_log_tells_the_run_and_the_level_says_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = {}
    for level in ("", "debug", "ERROR"):
        monkeypatch.setenv("DISTUNE_LOGLEVEL", level)
        monkeypatch.setenv("LOGLEVEL", "none of distune's business" if level else "")
        job = scripted(tmp_path / (level or "unset"), 1.0, 0.5, 0.95)
        assert main(job.arguments("--quiet")) == 0
        logs[level] = (job.workspace / "log" / "rank-0.log").read_text()
    for word in ("fp32 accuracy 1.0000", "stage default begins", "trial 1", "not met", "trial 2", " met\n"):
        assert word in logs[""]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ (INFO|WARNING) ", logs[""])
    assert "DEBUG" not in logs[""]
    assert "DEBUG" in logs["debug"]
    assert logs["ERROR"] == ""


def test_a_wrong_log_level_is_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("LOGLEVEL", "loud")
    job = scripted(tmp_path, 1.0, 0.95)
    assert main(job.arguments()) == 2
    assert "LOGLEVEL=loud: expected one of DEBUG, INFO, WARNING, ERROR" in capsys.readouterr().err
    assert not job.workspace.exists()


# ---------------------------------------------------------------------------------------------------------- once again


def test_a_finished_run_gives_its_result_again(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0, 0.5, 0.5, 0.95)
    assert main(job.arguments("--quiet")) == 0
    first, calls = valid(job), job.calls
    journal = (job.workspace / "journal.jsonl").read_bytes()
    assert main(job.arguments("--quiet")) == 0
    again = valid(job)
    assert (again.outcome, again.best, again.trials, again.stages[0].name) == (
        first.outcome,
        first.best,
        first.trials,
        first.stages[0].name,
    )
    assert job.calls == calls
    assert (job.workspace / "journal.jsonl").read_bytes() == journal


def test_fresh_starts_over_and_keeps_the_old_journal(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0, 0.95)
    main(job.arguments("--quiet"))
    journal = (job.workspace / "journal.jsonl").read_bytes()
    assert main(job.arguments("--quiet", "--fresh")) == 0
    assert job.calls == 4
    kept = [path for path in job.workspace.rglob("*") if path.is_file() and path.read_bytes() == journal]
    assert len(kept) == 1
    assert kept[0].name != "journal.jsonl"
    assert (job.workspace / "best-1" / "model.onnx").exists()


def test_fresh_leaves_no_best_model_of_another_run(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0, 0.95)
    main(job.arguments("--quiet"))
    (job.folder / "accuracies.txt").write_text("raise")
    assert main(job.arguments("--quiet", "--fresh")) == 2
    assert job.result().outcome == "failed"
    assert not (job.workspace / "best").exists()


def test_another_job_in_the_workspace_is_refused(tmp_path: Path, capsys: Capture) -> None:
    job = scripted(tmp_path, 1.0, 0.95)
    main(job.arguments("--quiet"))
    job.document["tuning"]["accuracy_criterion"] = {"absolute": 0.2}
    assert main(job.arguments("--quiet")) == 2
    said = capsys.readouterr().err
    assert "0.1" in said
    assert "0.2" in said
    assert "--fresh" in said
    assert job.result().outcome == "met", "the other job's result is as it was"
    assert main(job.arguments("--quiet", workspace=tmp_path / "other")) == 0


def test_a_larger_budget_goes_on_where_it_ended(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0, *[0.5] * 6, 0.95)
    job.document["tuning"]["strategy"] = {"name": "basic", "strategy_kwargs": {"op_type_wise_trials": 16}}
    assert main(job.arguments("--quiet", "--set", "tuning.exit_policy.max_trials=5")) == 4
    assert job.calls == 6
    assert main(job.arguments("--quiet")) == 0
    assert job.result().outcome == "met"


def test_two_runs_at_once_in_one_workspace_are_refused(tmp_path: Path, capsys: Capture) -> None:
    job = gated(tmp_path, stop_at=3)
    with running(job, job.command("--quiet")) as process:
        assert main(job.arguments("--quiet")) == 2
        assert str(process.pid) in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- ended from outside


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of an uninterrupted run of the gated job."""
    job = gated(tmp_path_factory.mktemp("whole"), isolation="none")
    assert main(job.arguments("--quiet")) == 0
    return job.workspace


def goes_on(job: Job, whole: Path, *arguments: str) -> None:
    """The same command resumes: nothing that was finished is judged again, and the result is that of one run."""
    before = [record.data["key"] for record in read_records(job.workspace / "journal.jsonl") if record.kind == "result"]
    assert main(job.arguments("--quiet", *arguments)) == 0
    after = read_records(job.workspace / "journal.jsonl")
    keys = [record.data["key"] for record in after if record.kind == "result"]
    assert keys[: len(before)] == before
    assert len(set(keys)) == len(keys)
    assert same_decisions(after, read_records(whole / "journal.jsonl")) == []
    result, expected = valid(job), job.result(whole)
    assert (result.outcome, result.fallback_order, result.op_impact) == (
        expected.outcome,
        expected.fallback_order,
        expected.op_impact,
    )
    assert [(t.id, t.config_hash, t.accuracy) for t in result.trials] == [
        (t.id, t.config_hash, t.accuracy) for t in expected.trials
    ]
    assert result.best is not None
    assert expected.best is not None
    assert result.best.config_hash == expected.best.config_hash


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_killed_in_mid_run_it_goes_on(tmp_path: Path, whole: Path, stop_at: int) -> None:
    job = gated(tmp_path, stop_at)
    with running(job, job.command("--quiet")):
        pass
    goes_on(job, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_ends_it_in_order_and_it_goes_on(tmp_path: Path, whole: Path, number: signal.Signals) -> None:
    job = gated(tmp_path, stop_at=4)
    with running(job, job.command("--quiet")) as process:
        process.send_signal(number)
        assert process.wait(timeout=10) == 75
    result = valid(job)
    assert result.outcome == "interrupted"
    assert len(result.trials) == 2
    goes_on(job, whole)


def test_a_journal_cut_in_its_last_line_goes_on(tmp_path: Path, whole: Path) -> None:
    job = gated(tmp_path, stop_at=6)
    with running(job, job.command("--quiet")):
        pass
    content = (job.workspace / "journal.jsonl").read_bytes()
    last = content.rstrip(b"\n").rindex(b"\n") + 1
    for cut in (last, last + 1, (last + len(content)) // 2, len(content) - 2, len(content) - 1):
        (job.workspace / "journal.jsonl").write_bytes(content[:cut])
        goes_on(job, whole)


# -------------------------------------------------------------------------------------------------------- surroundings


def test_mpi4py_is_not_needed_alone(tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "mpi4py.py").write_text("raise ImportError('blocked')")
    job = scripted(tmp_path / "job", 1.0, 0.5, 0.95, isolation="process")
    path = f"{tmp_path / 'blocked'}:{environment()['PYTHONPATH']}"
    done = start(job.command("--quiet"), PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert job.result().outcome == "met"


def test_children_end_with_the_run_and_their_output_is_in_the_log(tmp_path: Path, capfd: Capture) -> None:
    job = scripted(tmp_path, 1.0, 0.95, isolation="process")
    text = (job.folder / "score.py").read_text()
    (job.folder / "score.py").write_text(text.replace("def given(model):", "def given(model):\n    print('said here')"))
    assert main(job.arguments("--json")) == 0
    assert "said here" not in capfd.readouterr().out
    assert "said here" in (job.workspace / "log" / "rank-0.log").read_text()


def test_what_a_success_made_needless_is_not_reported_as_left_out(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0, 0.5, 0.95)
    assert main(job.arguments("--quiet")) == 0
    assert job.result().trials[-1].stage == "all recipes"
    assert job.result().skipped_candidates == ()
