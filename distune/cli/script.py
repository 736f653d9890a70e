"""``distune run script.py --sigopt-file sigopt.yml``: tune a script or function of the user's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from distune.errors import UsageError

if TYPE_CHECKING:
    from distune.script.file import ScriptExperiment
    from distune.script.study import StudyOutcome
    from distune.strategies.stage import Trial

RESULT = "experiment.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is only for scripts."""
    group = parser.add_argument_group("tuning a script or function of your own")
    group.add_argument(
        "--sigopt-file",
        type=Path,
        metavar="sigopt.yml",
        help="name, parameters, metrics and budget; then cfg.yaml is script.py or file.py:function, run once a trial, "
        "and --set gives settings of the strategy",
    )
    group.add_argument("--strategy", default="bayesian", help="bayesian (default), tpe, random, exhaustive or sigopt")


def main(arguments: argparse.Namespace, channel: TextIO) -> int:
    """Spend the budget, write ``experiment.json`` and print the best parameters; 3 where nothing keeps the constraints.

    Args:
        channel: Where ``--json`` goes.

    Raises:
        UsageError: The file, the script or the strategy is wrong: nothing was run.
    """
    from distune.config.job import StrategySpec
    from distune.journal.files import write_file
    from distune.script.file import load_experiment
    from distune.script.process import command_of, run_trial
    from distune.script.study import tune_script

    if arguments.np is not None:
        raise UsageError(
            "a script is tuned by one process: parallel_bandwidth in the file says how many trials at once"
        )
    experiment = load_experiment(arguments.sigopt_file)
    wanted = [metric.name for metric in experiment.metrics]
    command = command_of(str(arguments.config), (), wanted[0])
    strategy = StrategySpec(arguments.strategy, _settings(arguments.set))
    quiet = arguments.quiet

    def show(trial: Trial) -> None:
        if not quiet:
            print(_line(trial), flush=True)

    found = tune_script(experiment, strategy, lambda values: run_trial(command, values, wanted), on_trial=show)
    for note in found.notes:
        print(note)
    folder = Path(arguments.workspace or "distune_workspace")
    folder.mkdir(parents=True, exist_ok=True)
    content = _content(experiment, strategy.name, found)
    write_file(folder / RESULT, content)
    if arguments.json:
        print(content, file=channel, flush=True)
    elif found.best is None:
        print("no trial keeps the constraints")
    else:
        print(f"best: {_line(found.best)}")
    return 0 if found.best is not None else 3


def _settings(overrides: list[str]) -> dict[str, Any]:
    import yaml

    settings: dict[str, Any] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"--set {text}: expected KEY=VALUE")
        settings[key] = yaml.safe_load(value)
    return settings


def _line(trial: Trial) -> str:
    parameters = ", ".join(f"{name}={value}" for name, value in trial.config.parameters)
    metrics = ", ".join(f"{name} {value:.6g}" for name, value in trial.metrics.items())
    outcome = f"failed: {trial.reason}" if trial.verdict == "failed" else metrics
    return f"trial {trial.id}: {parameters}: {outcome}" + (" (constraint broken)" if trial.verdict == "not_met" else "")


def _content(experiment: ScriptExperiment, strategy: str, found: StudyOutcome) -> str:
    import json

    trials = [
        {
            "id": trial.id,
            "parameters": dict(trial.config.parameters),
            "metrics": dict(trial.metrics),
            "verdict": trial.verdict,
            "host": trial.host,
            "reason": trial.reason,
        }
        for trial in found.trials
    ]
    content = {
        "name": experiment.name,
        "strategy": strategy,
        "best": None if found.best is None else found.best.id,
        "pareto": list(found.front),
        "notes": list(found.notes),
        "trials": trials,
    }
    return json.dumps(content, indent=2) + "\n"
