"""Every strategy through the command line: what it comes to, on one process and on three ranks alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.distributed.launcher import launcher_environment, mpirun_command
from distune.report.result import RunResult
from distune.strategies.registry import strategies
from tests.cli.jobs import ROOT, Job, judged, start
from tests.cli.same import assert_same
from tests.distributed.mpirun import LAUNCHER, needs_mpirun

pytestmark = [needs_mpirun, pytest.mark.mpi, pytest.mark.full, pytest.mark.timeout(900)]

DIGITS = ROOT / "launch" / "examples" / "digits.yaml"

SETTINGS: dict[str, tuple[str, ...]] = {
    "auto": ("tuning.strategy.name=auto", "quantization.quant_level=auto"),
    "conservative": ("tuning.strategy.name=conservative", "quantization.quant_level=0"),
    "bayesian": ("tuning.strategy.name=bayesian", "tuning.exit_policy.max_trials=6"),
    **{
        name: (f"tuning.strategy.name={name}", "tuning.exit_policy.max_trials=8")
        for name in ("exhaustive", "random", "tpe")
    },
    **{name: (f"tuning.strategy.name={name}",) for name in ("basic", "mse", "mse_v2")},
    # what it proposes follows from measurements, so for two runs to agree it needs one that does not vary
    "knapsack": ("tuning.strategy.name=knapsack", "tuning.objective=modelsize"),
}
"""How each strategy is asked for. hawq_v2 needs gradients and sigopt its service: they have tests of their own."""

FALLS_BACK = {"auto", "basic", "knapsack", "mse", "mse_v2"}
"""Strategies that can return single ops to fp32: they meet where one op is to blame. The samplers have no fallback
dtype unless they are given it, and conservative keeps or leaves a whole op type."""


def test_every_strategy_is_in_the_table() -> None:
    ours = {name for name, strategy in strategies().items() if strategy.__module__.startswith("distune.")}
    assert ours == {*SETTINGS, "hawq_v2", "sigopt"}


@pytest.mark.parametrize("strategy", sorted(SETTINGS))
@pytest.mark.parametrize("model", ["planted", "digits"])
def test_one_process_and_three_ranks_come_to_the_same(tmp_path: Path, model: str, strategy: str) -> None:
    job = judged(tmp_path, "fc2", isolation="process") if model == "planted" else Job(tmp_path, {})
    config = job.config if model == "planted" else DIGITS
    changes = [word for setting in SETTINGS[strategy] for word in ("--set", setting)]
    workspaces = {ranks: tmp_path / str(ranks) for ranks in (1, 3)}
    results: dict[int, RunResult] = {}
    for ranks, workspace in workspaces.items():
        command = [*job.command()[:3], "run", str(config), "--workspace", str(workspace), "--quiet", *changes]
        if ranks > 1:
            command = mpirun_command(ranks, command, LAUNCHER)
        done = start(command, seconds=400, **launcher_environment({}))
        result = results[ranks] = RunResult.from_json((workspace / "result.json").read_text())
        assert done.returncode == {"met": 0, "not_met": 3, "budget_spent": 4}[result.outcome], done.stderr
    assert_same(workspaces[1], workspaces[3])
    result = results[3]
    limit = 100 if strategy not in ("bayesian", "exhaustive", "random", "tpe") else 8
    assert 0 < len(result.trials) <= limit
    assert len({trial.config_hash for trial in result.trials}) == len(result.trials)
    if strategy in FALLS_BACK:
        assert result.outcome == "met"
        assert result.best is not None
        assert result.best.ops_quantized > 0
    else:
        assert result.outcome in ("not_met", "budget_spent", "met")
        assert result.outcome != "met" or strategy == "conservative"


@pytest.mark.assets
def test_mse_needs_half_the_trials_of_basic_on_the_hard_model(tmp_path: Path, assets: Path) -> None:
    config = ROOT / "launch" / "examples" / "mobilenetv1.yaml"
    trials: dict[str, int] = {}
    for strategy in ("basic", "mse"):
        changes = (
            f"tuning.strategy.name={strategy}",
            "evaluation.accuracy.dataloader.dataset.Npz.limit=1000",
            "tuning.refine_trials=0",
            # which would meet before any op falls back, whatever the order
            "quantization.recipes={fast_bias_correction: false, cross_layer_equalization: false, adaround: false}",
        )
        workspace = tmp_path / strategy
        command = [*Job(tmp_path, {}).command()[:3], "run", str(config), "--workspace", str(workspace), "--quiet"]
        done = start(
            [*command, *(word for change in changes for word in ("--set", change))],
            seconds=600,
            DISTUNE_ASSETS=str(assets),
        )
        assert done.returncode == 0, done.stderr
        trials[strategy] = len(RunResult.from_json((workspace / "result.json").read_text()).trials)
    assert trials["mse"] <= trials["basic"] / 2
