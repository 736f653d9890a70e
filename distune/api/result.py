"""``FitResult``: what ``distune.quantization.fit`` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distune.config.job import TuningJob
from distune.engine.outcome import OutcomeName, RunOutcome
from distune.errors import UsageError
from distune.report.result import RunResult
from distune.report.tuning_config import SavedConfig
from distune.space.op_config import TuningConfig
from distune.strategies.stage import Trial

if TYPE_CHECKING:
    import onnx
    import torch

_ACCEPTED = ("met", "not_judged")


@dataclass(frozen=True)
class FoundModel:
    """A quantized model.

    Attributes:
        trial: The trial that judged it.
        saved: Its tuning config, with what makes the model again without data.
        files: Content of its files by name, the model first; ``None`` on a rank that does not hold it.
        sources: The files that it was made of, which ``save`` never writes over.
    """

    trial: Trial
    saved: SavedConfig
    files: Mapping[str, bytes] | None
    sources: tuple[Path, ...] = ()

    @property
    def model(self) -> onnx.ModelProto | torch.nn.Module | None:
        """The model, loaded anew with each access; ``None`` on a rank that does not hold it.

        An ``onnx.ModelProto`` has all its weights inside. A module holds quantize and dequantize nodes around
        floating-point ops and integer weights: ``torch.compile`` with ``torch._inductor.config.freezing`` makes integer
        kernels of it, as the run did that judged it.

        Raises:
            UsageError: The weights are too large for one ``onnx.ModelProto`` (2 GB); ``save`` writes them.
        """
        if self.files is None:
            return None
        name, content = next(iter(self.files.items()))
        if name.endswith(".pt2"):
            from distune.backends.pytorch.deployment import load

            return load(content)
        from distune.backends.onnxruntime.storage import assembled

        return assembled(self.files)

    @property
    def accuracy(self) -> float | None:
        """Its accuracy on the complete evaluation set; ``None`` where nothing was judged."""
        return self.trial.accuracy

    @property
    def q_config(self) -> TuningConfig:
        """Its tuning config."""
        return self.trial.config

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the model.

        Args:
            path: A file that ends in ``.onnx`` (PyTorch: ``.pt2``), what belongs to it comes beside it under its name
                (``int8.onnx.data``, ``int8.state.pt``); or a folder, which gets ``model.onnx`` and
                ``tuning_config.yaml`` (and ``tuning_config.npz``, where it has weights that were found with data).

        Returns:
            The files that were written; none on a rank that does not hold the model, since the one that does writes it.

        Raises:
            UsageError: It cannot be written, or the fp32 model is there.
        """
        from distune.report.saving import named_after, write_model

        if self.files is None:
            return ()
        target = Path(os.fspath(path)).expanduser().absolute()
        if target.suffix == Path(next(iter(self.files))).suffix and not target.is_dir():
            content = named_after(target, self.files)
        else:
            content = {target / name: data for name, data in {**self.files, **self.saved.files()}.items()}
        write_model(content, self.sources)
        return tuple(content)


@dataclass(frozen=True)
class FitResult:
    """The outcome of a ``fit``: true where the criterion is met, or where nothing was asked to be met.

    Attributes:
        outcome: ``met``, ``not_met``, ``budget_spent``, ``interrupted``, ``failed``, or ``not_judged`` (no way to
            evaluate was given: quantized once).
        best_effort: The best model that was found, whether it meets or not; ``None`` where there is none.
        trials: The judged trials, by id.
        result: Everything, as in ``result.json``.
        workspace: Folder of the run's files.
    """

    outcome: OutcomeName
    best_effort: FoundModel | None
    trials: tuple[Trial, ...]
    result: RunResult
    workspace: Path

    @classmethod
    def of(cls, outcome: RunOutcome, result: RunResult, workspace: Path) -> FitResult:
        """The result of a run that has ended."""
        found = None
        if outcome.best is not None and outcome.exported is not None:
            from distune.distributed.files import files_of

            model = outcome.job.model
            saved = SavedConfig(model.framework, model.quant_format, outcome.best.config, outcome.exported.deploy)
            found = FoundModel(outcome.best, saved, outcome.exported.files, tuple(files_of(TuningJob(model))))
        return cls(outcome.outcome, found, outcome.trials, result, workspace)

    def __repr__(self) -> str:
        found = self.best_effort
        accuracy = "" if found is None or found.accuracy is None else f", accuracy {found.accuracy:.6g}"
        return f"<FitResult {self.outcome}{accuracy}, {len(self.trials)} trials, in {self.workspace}>"

    def __bool__(self) -> bool:
        return self.outcome in _ACCEPTED

    @property
    def accepted(self) -> FoundModel | None:
        """The model that meets the criterion (or that nothing was asked of)."""
        return self.best_effort if self else None

    @property
    def model(self) -> onnx.ModelProto | torch.nn.Module | None:
        """The accepted model, loaded anew with each access; ``None`` where none is, or another rank holds it."""
        return None if self.accepted is None else self.accepted.model

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the accepted model."""
        return None if self.accepted is None else self.accepted.accuracy

    @property
    def q_config(self) -> TuningConfig | None:
        """Tuning config of the accepted model."""
        return None if self.accepted is None else self.accepted.q_config

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the accepted model; see ``FoundModel.save``.

        Raises:
            UsageError: No model was accepted, or it cannot be written.
        """
        if self.accepted is None:
            way = "; the best that was found is saved with .best_effort.save(...)" if self.best_effort else ""
            raise UsageError(f"save: no model was accepted (outcome: {self.outcome}){way}")
        return self.accepted.save(path)

    def without_model(self) -> FitResult:
        """The same for a rank that does not hold the model."""
        found = self.best_effort
        return replace(self, best_effort=None if found is None else replace(found, files=None))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"a FitResult has no {name!r}; the quantized model is in .model, what was not accepted in .best_effort"
        )
