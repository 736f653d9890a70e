"""Quantization-aware training from Python, by the names of INC 2.x.

Let distune tune, a training for every trial::

    from distune import QuantizationAwareTrainingConfig, training

    manager = training.prepare_compression(module, QuantizationAwareTrainingConfig(quant_level=1))

    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        manager.callbacks.on_train_begin()
        for epoch in range(3):
            manager.callbacks.on_epoch_begin(epoch)
            ...
        manager.callbacks.on_train_end()

    found = training.fit(manager, train, eval_func=score)

Or train the fully quantized module yourself: ``manager.model`` between ``on_train_begin`` and ``on_train_end``, then
``manager.save("folder")``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distune.api.fitting import carry_out
from distune.api.model import is_torch_module, model_spec
from distune.api.names import known_names
from distune.api.result import FitResult
from distune.config.conf import QuantizationAwareTrainingConfig
from distune.config.conf_to_job import Live, job_of
from distune.config.process_options import options
from distune.errors import UsageError

if TYPE_CHECKING:
    import torch

    from distune.backends.base import ExportedModel
    from distune.backends.pytorch.qat.backend import TrainingBackend
    from distune.backends.pytorch.qat.trainable import TrainableModule
    from distune.config.job import ModelSpec, TuningJob
    from distune.space.op_config import TuningConfig


def prepare_compression(
    model: Any, confs: QuantizationAwareTrainingConfig | Sequence[Any], example_inputs: Any = None
) -> CompressionManager:
    """A manager of the training of ``model``.

    Args:
        model: ``torch.nn.Module`` in fp32; it stays as it is. Its copy is trained.
        confs: What is looked for and what is allowed.
        example_inputs: One batch of inputs, by which the module is exported: an array or tensor, a tuple in the order
            of ``forward``, or a mapping by name. INC has no such argument; ``fit`` can take a batch of its
            ``eval_dataloader`` instead.

    Raises:
        UsageError: ``model`` is no module, or ``confs`` asks for something else than quantization-aware training.
    """
    given = list(confs) if isinstance(confs, list | tuple) else [confs]
    if len(given) != 1 or not isinstance(given[0], QuantizationAwareTrainingConfig):
        names = ", ".join(type(each).__name__ for each in given) or "nothing"
        raise UsageError(
            f"prepare_compression was given {names}; distune trains for quantization alone: give one "
            "QuantizationAwareTrainingConfig"
        )
    if not is_torch_module(model):
        raise UsageError(f"prepare_compression: the model is a {type(model).__name__}; expected a torch.nn.Module")
    return CompressionManager(model, given[0], example_inputs)


def fit(
    compression_manager: CompressionManager,
    train_func: Callable[[Any], Any],
    eval_func: Callable[..., Any] | None = None,
    eval_dataloader: Iterable[Any] | None = None,
    eval_metric: Any = None,
    *,
    isolation: Literal["process", "none"] | None = None,
    model_on_all_ranks: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> FitResult:
    """Tune, with a training for every trial; under ``mpirun`` the trials are spread over the ranks.

    Args:
        compression_manager: Of the model.
        train_func: Gets the module of a trial, ready to be trained, and trains it in place. It is called with the same
            seeds in every trial and is a trial's alone: for the same numbers at any number of ranks it must not depend
            on what earlier calls left behind.
        eval_func, eval_dataloader, eval_metric: As in ``quantization.fit``.
        isolation, model_on_all_ranks, fresh, quiet: As in ``quantization.fit``.

    Returns:
        The result, as of ``quantization.fit``.

    Raises:
        UsageError: Config, model, data or a function of yours is at fault and nothing was tuned.
        DistuneError: The run failed.
    """
    if not isinstance(compression_manager, CompressionManager):
        raise UsageError(
            f"training.fit: expected what prepare_compression gave, got a {type(compression_manager).__name__}"
        )
    if not callable(train_func):
        raise UsageError(
            f"train_func is a {type(train_func).__name__}, which cannot be called; give a function that takes the "
            "module and trains it"
        )
    live = Live(None, eval_func, eval_dataloader, eval_metric, train_func)
    return carry_out(
        lambda spec, workspace: compression_manager.job(spec, live, workspace),
        compression_manager.original,
        isolation=isolation,
        model_on_all_ranks=model_on_all_ranks,
        fresh=fresh,
        quiet=quiet,
    )


class CompressionManager:
    """Joins a module, a config and the callbacks of a training; made by ``prepare_compression``.

    It travels to other processes with the functions that mention it, without the module: there, the callbacks speak
    of the module of the trial that is running.

    Attributes:
        original: The fp32 module.
        conf: What is looked for.
        callbacks: To be called by the training loop.
    """

    def __init__(self, model: Any, conf: QuantizationAwareTrainingConfig, example_inputs: Any = None) -> None:
        self.original = model
        self.conf = conf
        self.example_inputs = example_inputs
        self.callbacks = Callbacks(self)
        self._direct: _Direct | None = None

    @property
    def model(self) -> Any:
        """The module to train, fully quantized; after ``on_train_end`` the quantized graph that came of it."""
        return self.direct.model

    @property
    def direct(self) -> _Direct:
        """The training without tuning, begun where it was not."""
        if self._direct is None:
            self._direct = _Direct(self.job(model_spec(self.original), Live(), ""))
        return self._direct

    @property
    def begun(self) -> _Direct | None:
        """The training without tuning, if it was begun."""
        return self._direct

    def job(self, spec: ModelSpec, live: Live, workspace: str) -> TuningJob:
        """The job of this manager's config.

        Raises:
            UsageError: See ``conf_to_job.job_of``; or nothing tells with what the module is exported.
        """
        from dataclasses import replace

        if self.example_inputs is None and live.eval_dataloader is None:
            raise UsageError(
                "torch.export needs a batch of inputs to read the module with: give "
                "prepare_compression(model, conf, example_inputs=...), or eval_dataloader"
            )
        spec = replace(spec, name=self.conf.model_name, example_inputs=self.example_inputs)
        return job_of(self.conf, spec, live, seed=options.random_seed, workspace=workspace, known=known_names())

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write what came of a training without tuning: ``model.pt2``, the weights, and ``tuning_config.yaml``.

        Returns:
            The files that were written.

        Raises:
            UsageError: Training has not ended, or the folder cannot be written.
        """
        return self.direct.save(Path(os.fspath(path)).expanduser().absolute())

    def __getstate__(self) -> dict[str, Any]:
        return {"conf": self.conf}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(None, state["conf"])  # type: ignore[misc]


class Callbacks:
    """What a training loop calls, by the names of INC 2.x.

    Those of an epoch turn the module between training and inference, those of the training's ends prepare and convert
    it; the others have nothing to do here and are there for loops that call them.
    """

    def __init__(self, manager: CompressionManager) -> None:
        self._manager = manager

    def on_train_begin(self, dataloader: Any = None) -> None:
        """Training begins: the module is prepared where that was not done yet."""
        self._trainable().module.train()

    def on_epoch_begin(self, epoch: int) -> None:
        """An epoch begins."""
        self._trainable().module.train()

    def on_step_begin(self, batch_id: int) -> None:
        """A batch is about to be trained."""

    def on_batch_begin(self, batch_id: int) -> None:
        """The same as ``on_step_begin``."""

    def on_after_compute_loss(
        self, input: Any, student_output: Any, student_loss: Any, teacher_output: Any = None
    ) -> Any:
        """The loss was computed; gives it back."""
        return student_loss

    def on_before_optimizer_step(self) -> None:
        """The gradients are there."""

    def on_after_optimizer_step(self) -> None:
        """The weights have changed."""

    def on_step_end(self) -> None:
        """A batch was trained."""

    def on_batch_end(self) -> None:
        """The same as ``on_step_end``."""

    def on_epoch_end(self) -> None:
        """An epoch has ended."""

    def on_before_eval(self) -> None:
        """The module is about to be evaluated."""
        self._trainable().module.eval()

    def on_after_eval(self) -> None:
        """The module was evaluated."""
        self._trainable().module.train()

    def freeze(self) -> None:
        """Ranges and batch norm's statistics stand still from now on; INC has no such callback.

        Worth calling for the last epochs: the weights then settle on the grid that they will be used with.
        """
        self._trainable().freeze()
        self._trainable().module.train()

    def on_train_end(self) -> None:
        """Training has ended: ``manager.model`` is the quantized graph from now on."""
        self._trainable().module.eval()
        if not self._in_trial() and self._manager.begun is not None:
            self._manager.begun.end()

    def _trainable(self) -> TrainableModule:
        return self._in_trial() or self._manager.direct.trainable

    @staticmethod
    def _in_trial() -> TrainableModule | None:
        from distune.backends.pytorch.versions import require_torch

        require_torch()
        from distune.backends.pytorch.qat.trainable import trained_now

        return trained_now()


class _Direct:
    """A training of the fully quantized module by the user's own loop, in this process."""

    def __init__(self, job: TuningJob) -> None:
        from distune.backends.pytorch.versions import require_torch

        require_torch()
        from distune.backends.pytorch.qat.backend import TrainingBackend
        from distune.space.tuning_space import build_space

        self._job = job
        self._backend: TrainingBackend = TrainingBackend(job)
        space = build_space(self._backend.facts().capability, job.constraints, job.approach, job.recipes, (0,))
        self._config: TuningConfig = space.default()
        self.trainable: TrainableModule = self._backend.trainable(self._config)
        self._converted: torch.nn.Module | None = None

    @property
    def model(self) -> torch.nn.Module:
        return self.trainable.module if self._converted is None else self._converted

    def end(self) -> None:
        learned = self.trainable.learned()
        self._converted = self._backend.quantized_by_training(self._config, learned)

    def save(self, folder: Path) -> tuple[Path, ...]:
        from distune.report.saving import write_model
        from distune.report.tuning_config import SavedConfig

        if self._converted is None:
            raise UsageError("save: training has not ended; call callbacks.on_train_end() first")
        exported: ExportedModel = self._backend.exported_by_training(self._config, self.trainable.learned())
        saved = SavedConfig("pytorch", "default", self._config, exported.deploy)
        content = {folder / name: data for name, data in {**exported.files, **saved.files()}.items()}
        write_model(content, ())
        return tuple(content)


__all__ = ["Callbacks", "CompressionManager", "FitResult", "fit", "prepare_compression"]
