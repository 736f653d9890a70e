"""The PyTorch backend: static and dynamic post-training quantization of ``nn.Module`` on x86 CPUs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from distune.backends.base import Backend, ExportedModel, Feed, ModelFacts
from distune.backends.pytorch.versions import require_torch, versions
from distune.config.job import TuningJob
from distune.data.batch import Inputs
from distune.data.loader import open_dataloader
from distune.errors import TrialError
from distune.space.capability import Capability
from distune.space.op_config import TuningConfig

require_torch()  # before anything of torchao is imported by name

import torch  # noqa: E402

from distune.backends.pytorch.model import load_module  # noqa: E402
from distune.backends.pytorch.program import export_module  # noqa: E402
from distune.backends.pytorch.runnable import GraphModel, state_bytes  # noqa: E402

Variant = tuple[tuple[str, Any], ...]

_BATCHES_LOOKED_AT = 4
"""Batches of data whose shapes tell which axes are dynamic."""


class PyTorchBackend(Backend):
    """Quantizes PyTorch modules, each op by its own mode. See ``backends.base.Backend`` for the contract."""

    def __init__(self, job: TuningJob) -> None:
        self._job = job
        self._loaded = load_module(job.model, list(_examples(job)))
        self._exported = export_module(self._loaded)
        names = iter(self._loaded.input_names)
        self._arguments = tuple(None if value is None else next(names) for value in self._loaded.example_inputs)

    def facts(self) -> ModelFacts:
        return ModelFacts(
            capability=Capability(()),
            inputs=self._exported.inputs,
            outputs=self._exported.output_names,
            size_bytes=state_bytes(self._exported.graph_module),
            session_options={"device": "cpu", "mode": "eager"},
            versions=versions(),
            digest=self._digest,
        )

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256(self._exported.graph_module.code.encode())
        for name, tensor in self._exported.program.state_dict.items():
            content.update(name.encode())
            content.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return content.hexdigest()

    def load(self, config: TuningConfig | None, threads: int = 1) -> GraphModel:
        if config is None:
            return GraphModel(self._exported.graph_module, self._arguments, threads)
        raise TrialError("the PyTorch backend cannot quantize yet")

    def calibrate(self, variant: Variant, batches: Iterable[tuple[int, Feed]]) -> bytes:
        raise TrialError("the PyTorch backend cannot calibrate yet")

    def set_statistics(self, variant: Variant, sampling_size: int, blob: bytes) -> None:
        raise TrialError("the PyTorch backend cannot calibrate yet")

    def export(self, config: TuningConfig) -> ExportedModel:
        raise TrialError("the PyTorch backend cannot export yet")

    def apply(self, deploy: Mapping[str, Any], config: TuningConfig) -> ExportedModel:
        raise TrialError("the PyTorch backend cannot export yet")


def _examples(job: TuningJob) -> Iterator[Inputs]:
    """Inputs of first batches, with which the module is exported."""
    for dataloader in (job.calibration.dataloader, job.evaluation.dataloader):
        if dataloader is not None:
            for count, batch in enumerate(open_dataloader(dataloader, job.seed)):
                if count >= _BATCHES_LOOKED_AT:
                    break
                yield batch.inputs
