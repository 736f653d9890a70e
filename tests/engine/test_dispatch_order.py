"""In which order the trials of a stage that changes one op at a time are begun, and that no decision sees it."""

from __future__ import annotations

from pathlib import Path

from distune.config.job import StrategySpec
from distune.distributed.simulated import SimulatedTransport
from distune.engine.tuner import Tuner
from distune.journal.workspace import Workspace
from distune.space.op_config import TuningConfig
from distune.trial.messages import Judge, Request
from tests.engine.simulated_run import Model, job, policy

CONVS = 60


def place_of(config: TuningConfig) -> int | None:
    """Of the one convolution that is left in floating point."""
    quantized = set(config.quantized_ops)
    alone = [name for name, _ in config.ops if name not in quantized and name.startswith("conv")]
    return int(alone[0].removeprefix("conv")) if len(alone) == 1 else None


def run(path: Path, workers: int) -> tuple[list[int], list[str], float]:
    """Places of ops in the order in which their trials began, the trials in their order, and the stage's seconds."""
    begun: list[int] = []

    def seconds(rank: int, request: Request) -> float:
        place = place_of(request.body.config) if isinstance(request.body, Judge) else None
        if place is None:
            return 0.01
        begun.append(place)
        return 1.0 + 9.0 * (CONVS - place) / CONVS  # what comes before an op is not computed again

    cost = {f"conv{i}": 0.02 for i in range(CONVS)}
    model = Model(cost, convs=CONVS, matmuls=0, seconds=seconds)
    tuning = job(strategy=StrategySpec("basic", {"op_type_wise_trials": 1}), exit_policy=policy(1e9, 3 * CONVS))
    transport = SimulatedTransport(model.answer, workers)
    with Workspace.open(path) as workspace:
        outcome = Tuner(tuning, transport, workspace, speculates=False).run()
        transport.close(outcome.exit_code)
    stage = next(stage for stage in outcome.stages if stage.name.startswith("instance-wise"))
    return begun, [trial.config.hash for trial in outcome.trials], stage.seconds


def test_ranks_do_not_wait_for_a_long_trial_that_was_begun_last(tmp_path: Path) -> None:
    begun, decided, seconds = run(tmp_path / "many", 12)
    alone, decided_alone, seconds_alone = run(tmp_path / "one", 1)
    assert sorted(begun) == sorted(alone)
    assert alone == sorted(alone, reverse=True), "from the last op to the first"
    assert begun[-1] > CONVS // 4, "the longest are not the last"
    assert seconds_alone / (12 * seconds) > 0.9
    assert decided == decided_alone, "decisions are taken in the order of the candidates"
