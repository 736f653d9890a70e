"""Check a configuration file; nothing is run."""

from __future__ import annotations

import argparse

from distune.cli import configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The configuration, and whether the model is looked at."""
    configuration.add_arguments(parser)
    parser.add_argument(
        "--check-model", action="store_true", help="also load the model and the data and resolve the op patterns"
    )


def main(arguments: argparse.Namespace) -> int:
    """Exit code 0 where the file is right."""
    loaded = configuration.read(arguments)
    if loaded.is_fragment:
        print(f"{arguments.config}: valid as a fragment; it has no model section, so it cannot be run")
        return 0
    job = loaded.job()
    if not arguments.check_model:
        print(f"{arguments.config}: valid")
        return 0
    from distune.errors import UsageError
    from distune.evaluation.criterion import check_directions
    from distune.evaluation.metric_set import MetricSet
    from distune.space.tuning_space import build_space
    from distune.trial.messages import Failure, Inspect, Inspection, Request
    from distune.trial.runner import Runner

    runner = Runner(job, "", 0)
    try:
        body = runner.answer(Request(1, Inspect())).body
    finally:
        runner.close()
    if isinstance(body, Failure):
        raise UsageError(body.message + (f"\n{body.detail}" if body.detail else ""))
    if not isinstance(body, Inspection):
        raise UsageError(f"the model could not be inspected: {type(body).__name__}")
    if job.evaluation.metrics:
        directions = MetricSet(job.evaluation, (), job.criterion.higher_is_better).directions
        check_directions(job.evaluation, job.criterion, directions)
    space = build_space(body.capability, job.constraints, job.approach, job.recipes, job.calibration.sampling_sizes)
    for warning in (*body.warnings, *space.warnings):
        print(f"warning: {warning}")
    weighted = sum(op.has_weight for op in space.ops)
    print(
        f"{arguments.config}: valid; {len(space.ops)} quantizable ops ({weighted} with weights) in "
        f"{len(space.groups)} groups, {len(space.excluded)} ops excluded"
    )
    return 0
