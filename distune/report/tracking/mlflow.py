"""One MLflow run a tuning run: parameters, a metric a trial, the verdict, and the report as an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distune.config.job import TuningJob
from distune.errors import MissingExtraError
from distune.report.result import RunResult
from distune.report.tracking.base import Tracker
from distune.strategies.stage import Trial


class MlflowTracker(Tracker):
    """Metrics ``accuracy``, ``latency_ratio`` and ``size_bytes`` with the trial id as their step.

    Args:
        tracking_uri: MLflow's store; where it is not given, what ``MLFLOW_TRACKING_URI`` or MLflow itself says.
        experiment: Name of the experiment.
        run_name: Name of the run; the model's unless given.

    Raises:
        MissingExtraError: MLflow is not installed.
    """

    def __init__(self, tracking_uri: str = "", experiment: str = "distune", run_name: str = "") -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise MissingExtraError("mlflow", "mlflow", "to track the run in MLflow") from error
        self._client: Any = MlflowClient(tracking_uri or None)
        self._experiment = experiment
        self._name = run_name
        self._run = ""

    def on_start(self, job: TuningJob, workspace: Path) -> None:
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(self._experiment)
        name = self._name or job.model.name or Path(job.model.path).name or "model"
        self._run = self._client.create_run(experiment, run_name=name).info.run_id
        strategy = {0: "conservative", "auto": "auto"}.get(job.quant_level, job.strategy.name)
        for key, value in {
            "framework": job.model.framework,
            "approach": job.approach,
            "strategy": strategy,
            "criterion": f"{job.criterion.kind} {job.criterion.tolerance}",
            "seed": job.seed,
            "workspace": str(workspace),
        }.items():
            self._client.log_param(self._run, key, value)

    def on_baseline(self, accuracy: float, target: float) -> None:
        self._client.log_metric(self._run, "baseline_accuracy", accuracy)
        self._client.log_metric(self._run, "target", target)

    def on_trial(self, trial: Trial) -> None:
        if trial.accuracy is not None and trial.accuracy == trial.accuracy:
            self._client.log_metric(self._run, "accuracy", trial.accuracy, step=trial.id)
        if trial.size_bytes is not None:
            self._client.log_metric(self._run, "size_bytes", trial.size_bytes, step=trial.id)

    def on_latency(self, trial: Trial, ratio: float, ci_low: float, ci_high: float) -> None:
        self._client.log_metric(self._run, "latency_ratio", ratio, step=trial.id)

    def on_end(self, result: RunResult, workspace: Path) -> None:
        self._client.set_tag(self._run, "outcome", result.outcome)
        for name in ("result.json", "report.html", "trials.csv"):
            if (workspace / name).is_file():
                self._client.log_artifact(self._run, str(workspace / name))
        self._client.set_terminated(self._run, "FAILED" if result.outcome == "failed" else "FINISHED")
        self._run = ""

    def close(self) -> None:
        if self._run:
            self._client.set_terminated(self._run, "KILLED")


__all__ = ["MlflowTracker"]
