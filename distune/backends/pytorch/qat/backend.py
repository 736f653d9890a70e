"""The PyTorch backend for approach ``qat``: every quantized config is the module that was trained with it."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

from distune.backends.base import ExportedModel
from distune.backends.pytorch.backend import PyTorchBackend
from distune.backends.pytorch.qat.trainable import Range, TrainableModule, Trained
from distune.backends.pytorch.qat.trainer import Trainer
from distune.backends.pytorch.quantizer import WeightScales
from distune.backends.pytorch.runnable import GraphModel
from distune.config.job import TuningJob
from distune.errors import UsageError
from distune.space.capability import Capability, OpInfo
from distune.space.op_config import OpConfig, TuningConfig

TRAINED = "trained"
"""Key of the trained float weights in ``ExportedModel.deploy``: with them a config is applied to the fp32 module."""

TRAINED_FILE = "trained.pt"
"""File of the same weights for the user's own module, as ``load_state_dict`` takes them."""


class TrainingBackend(PyTorchBackend):
    """Trains before it quantizes; probes ask about the untrained module, for which they need calibration data.

    A config with nothing to train, all in floating point, is the fp32 module.
    """

    def __init__(self, job: TuningJob) -> None:
        super().__init__(job)
        self._capability = trainable_capability(self._capability)
        self._learned: Mapping[str, Range] | None = None
        self._twin: tuple[str, TrainingBackend] | None = None
        self._trainer: Trainer | None = None

    def load(self, config: TuningConfig | None, threads: int = 1) -> GraphModel:
        return PyTorchBackend.load(self._of(config), config, threads)

    def load_deployed(self, config: TuningConfig, threads: int = 1) -> GraphModel:
        return PyTorchBackend.load_deployed(self._of(config), config, threads)

    def export(self, config: TuningConfig) -> ExportedModel:
        backend = self._of(config)
        exported = PyTorchBackend.export(backend, config)
        if backend is self:
            return exported
        state = backend.float_state()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        return ExportedModel({**exported.files, TRAINED_FILE: buffer.getvalue()}, {**exported.deploy, TRAINED: arrays})

    def apply(self, deploy: Mapping[str, Any], config: TuningConfig) -> ExportedModel:
        if TRAINED not in deploy:
            return super().apply(deploy, config)
        state = {name: torch.from_numpy(np.array(array)) for name, array in deploy[TRAINED].items()}
        misfits = self._misfits(state)
        if misfits:
            raise UsageError(f"the trained weights of this config do not fit the model: {misfits[0]}")
        ranges = {name: (float(low), float(high)) for name, (low, high) in deploy["ranges"].items()}
        return self.exported_by_training(config, Trained(state, ranges))

    def close(self) -> None:
        self._twin = None
        super().close()

    def trainable(self, config: TuningConfig) -> TrainableModule:
        """The module with fake quantization by ``config``, for a training loop of the user's own."""
        return TrainableModule(self._exported, self._model, self._effective(config))

    def quantized_by_training(self, config: TuningConfig, trained: Trained) -> GraphModule:
        """The reference graph of a module that was trained by the user's own loop."""
        return self._with(trained)._graph(self._effective(config))

    def exported_by_training(self, config: TuningConfig, trained: Trained) -> ExportedModel:
        """The files of a module that was trained by the user's own loop."""
        self._twin = (self._effective(config).hash, self._with(trained))
        return self.export(config)

    def float_state(self) -> dict[str, torch.Tensor]:
        """Weights of the module by name, in floating point."""
        return {name: tensor.detach().clone() for name, tensor in self._exported.graph_module.state_dict().items()}

    def _of(self, config: TuningConfig | None) -> TrainingBackend:
        """The backend of the module that was trained with ``config``."""
        if config is None:
            return self
        config = self._effective(config)
        if not config.quantized_ops:
            return self
        if self._twin is None or self._twin[0] != config.hash:
            self._twin = None  # before the next one is made: two at once may be one too many
            self._twin = (config.hash, self._with(self._training().trained(config)))
        return self._twin[1]

    def _training(self) -> Trainer:
        if self._trainer is None:
            names = iter(self._loaded.input_names)
            arguments = [None if value is None else next(names) for value in self._loaded.example_inputs]
            self._trainer = Trainer(self._job, self._exported, self._model, self._digest, arguments)
        return self._trainer

    def _misfits(self, state: Mapping[str, torch.Tensor]) -> list[str]:
        """What of ``state`` is missing or of another shape in the module, and the other way round."""
        own = self.float_state()
        names = sorted({*own} ^ {*state})
        shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
        return names + shapes

    def _with(self, trained: Trained) -> TrainingBackend:
        """This backend with what was learned: other weights, and ranges that need no calibration."""
        twin = copy.copy(self)
        twin._exported = trained.put_in(self._exported)
        twin._model = twin._exported.folded()
        twin._scales = WeightScales()
        twin._learned = trained.ranges
        return twin

    def _ranges(self, config: TuningConfig) -> dict[str, Range]:
        return super()._ranges(config) if self._learned is None else dict(self._learned)

    def _remarks(self, config: TuningConfig) -> list[str]:
        return super()._remarks(config) if self._learned is None else []


def trainable_capability(capability: Capability) -> Capability:
    """What of ``capability`` can be trained: static options whose range is the smallest and the largest value."""
    return replace(capability, ops=tuple(_trainable(op) for op in capability.ops))


def _trainable(op: OpInfo) -> OpInfo:
    return replace(op, options=tuple(option for option in op.options if not option.is_quantized or _learnable(option)))


def _learnable(option: OpConfig) -> bool:
    return option.mode == "static" and (option.activation is None or option.activation.algorithm == "minmax")


__all__ = ["TRAINED", "TRAINED_FILE", "TrainingBackend", "trainable_capability"]
