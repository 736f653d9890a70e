"""Trains the module of a tuning config, once: what was learned is kept, and an interrupted training goes on.

A training is a function of the job, the seed and the config: it runs on one thread, and whatever is random in an epoch
is seeded by the run's seed and the epoch. All configs see the same batches in the same order.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distune.backends.pytorch.model import to_tensor
from distune.backends.pytorch.program import ExportedModule
from distune.backends.pytorch.qat.checkpoint import Checkpoint, Checkpoints
from distune.backends.pytorch.qat.criteria import (
    KnowledgeDistillationLoss,
    make_criterion,
    make_optimizer,
)
from distune.backends.pytorch.qat.trainable import TrainableModule, Trained, being_trained
from distune.backends.pytorch.threads import intra_op_threads
from distune.backends.pytorch.versions import versions
from distune.config.imports import import_object, split_reference
from distune.config.job import DataloaderSpec, TrainSpec, TuningJob
from distune.data.batch import Batch, Inputs
from distune.data.loader import open_dataloader
from distune.data.transform import Postprocess
from distune.data.user_code import guard, user_code
from distune.errors import DataError, TrialError, UsageError
from distune.space.op_config import TuningConfig


class Trainer:
    """Trains configs of one job.

    Args:
        job: With ``train``.
        plain: The module as exported, batch norm included.
        folded: ``plain.folded()``.
        digest: Identity of the module.
        arguments: Names of the inputs in the order of ``forward``; ``None`` where ``None`` is passed.

    Raises:
        UsageError: The job does not say how to train.
    """

    def __init__(
        self,
        job: TuningJob,
        plain: ExportedModule,
        folded: ExportedModule,
        digest: str,
        arguments: Sequence[str | None],
    ) -> None:
        if job.train is None:
            raise UsageError("quantization-aware training needs the section quantization.train, or a train_func")
        self._spec: TrainSpec = job.train
        self._seed = job.seed
        self._plain = plain
        self._folded = folded
        self._arguments = tuple(arguments)
        cache = Path(job.workspace) / "cache" if job.workspace else None
        self._checkpoints = Checkpoints(cache if cache is not None and cache.is_dir() else None)
        self._identity = json.dumps([digest, job.seed, versions(), _identity(self._spec, job.seed)], sort_keys=True)

    def trained(self, config: TuningConfig) -> Trained:
        """What training by ``config`` gives, from the last run where there was one.

        Raises:
            TrialError: The loss is not finite.
            UsageError: The data, the optimizer or the criterion do not fit the module.
            UserCodeError: The user's ``train_func``, data, optimizer or criterion raises.
        """
        key = hashlib.sha256(f"{self._identity}{config.hash}".encode()).hexdigest()[:24]
        with intra_op_threads(1), torch.enable_grad():
            module = TrainableModule(self._plain, self._folded, config)
            found = self._checkpoints.load(key)
            if found is not None:
                module.load_state(found.state)
            if self._spec.train_func is not None:
                done = found or self._by_function(module)
            else:
                done = self._by_epochs(module, key, found or Checkpoint(self._spec.start_epoch, {}))
            if found is None or done.epoch != found.epoch:
                self._checkpoints.save(key, replace(done, optimizer={}))
            return module.learned(done.losses)

    def _by_function(self, module: TrainableModule) -> Checkpoint:
        given = self._spec.train_func
        function = import_object(given, "train_func") if isinstance(given, str) else given
        assert function is not None  # asked before
        self._draw_from(self._spec.start_epoch)
        module.begin_epoch(0, 1)
        name = given if isinstance(given, str) else getattr(function, "__name__", type(function).__name__)
        with being_trained(module), user_code(f"train_func {name!r}"):
            function(module.module)
        return Checkpoint(self._spec.end_epoch, module.state())

    def _by_epochs(self, module: TrainableModule, key: str, standing: Checkpoint) -> Checkpoint:
        spec = self._spec
        if standing.epoch >= spec.end_epoch:
            return standing
        optimizer = make_optimizer(spec.optimizer, _trained_parameters(module))
        if standing.optimizer:
            optimizer.load_state_dict(dict(standing.optimizer))
        for epoch in range(standing.epoch, spec.end_epoch):
            module.begin_epoch(epoch - spec.start_epoch, spec.end_epoch - spec.start_epoch)
            loss = self._epoch(module, optimizer, epoch)
            standing = Checkpoint(epoch + 1, module.state(), optimizer.state_dict(), (*standing.losses, loss))
            if epoch + 1 < spec.end_epoch:
                self._checkpoints.save(key, standing)
        return standing

    def _epoch(self, module: TrainableModule, optimizer: torch.optim.Optimizer, epoch: int) -> float:
        """Train one epoch; gives its mean loss."""
        criterion = make_criterion(self._spec.criterion)
        losses: list[float] = []
        for batch in self._batches(self._draw_from(epoch)):
            arguments = self._tensors(batch.inputs)
            if isinstance(criterion, KnowledgeDistillationLoss):
                with torch.no_grad():
                    criterion.teacher_outputs = _first(self._plain.graph_module(*arguments))
            outputs, labels = self._postprocess((_first(module.module(*arguments)), _label_tensors(batch)))
            with guard(criterion, f"criterion {self._spec.criterion.name!r}"):
                loss = _loss(criterion, outputs, labels, self._spec.criterion.name)
            losses.append(float(loss.detach()))
            if not np.isfinite(losses[-1]):
                raise TrialError(
                    f"training diverged: the loss of epoch {epoch}, batch {batch.index} is {losses[-1]}; lower the "
                    "learning rate"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not losses:
            raise DataError("the training dataloader gives no batch")
        return sum(losses) / len(losses)

    def _draw_from(self, epoch: int) -> int:
        """Seed every generator for an epoch; gives the seed."""
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}:epoch:{epoch}".encode()).digest()[:4], "big")
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return seed

    def _batches(self, seed: int) -> Iterator[Batch]:
        if self._spec.dataloader is None:
            raise UsageError("quantization-aware training needs quantization.train.dataloader")
        source = open_dataloader(self._spec.dataloader, seed)
        return itertools.islice(iter(source), None if self._spec.iteration < 0 else self._spec.iteration)

    def _tensors(self, inputs: Inputs) -> tuple[torch.Tensor | None, ...]:
        infos = self._plain.inputs
        if isinstance(inputs, Mapping):
            named = dict(inputs)
        else:
            values = inputs if isinstance(inputs, tuple) else (inputs,)
            named = dict(zip((info.name for info in infos), values, strict=False))
        missing = [info.name for info in infos if info.name not in named]
        if missing:
            raise DataError(f"the training data lack the input {missing[0]!r} of the model")
        tensors = {info.name: _as(to_tensor(named[info.name]), info.dtype, info.name) for info in infos}
        return tuple(None if name is None else tensors[name] for name in self._arguments)

    def _postprocess(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        return Postprocess(self._spec.postprocess)(pair) if self._spec.postprocess else pair


def _trained_parameters(module: TrainableModule) -> list[torch.nn.Parameter]:
    found = [parameter for parameter in module.module.parameters() if parameter.requires_grad]
    if not found:
        raise UsageError("the model has no parameter that requires a gradient, so there is nothing to train")
    return found


def _as(tensor: torch.Tensor, dtype: str, name: str) -> torch.Tensor:
    wanted: torch.dtype = getattr(torch, dtype)
    if tensor.dtype != wanted and tensor.is_floating_point() != wanted.is_floating_point:
        raise DataError(
            f"input {name!r}: the training data give {tensor.dtype}, the model expects {wanted}; convert it with the "
            "transform Cast"
        )
    return tensor.to(wanted)


def _label_tensors(batch: Batch) -> Any:
    if isinstance(batch.labels, tuple):
        return tuple(to_tensor(array) for array in batch.labels)
    return None if batch.labels is None else to_tensor(batch.labels)


def _first(outputs: Any) -> Any:
    """The only output, or all of several."""
    values = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    return values[0] if isinstance(values, tuple | list) and len(values) == 1 else values


def _loss(criterion: Any, outputs: Any, labels: Any, name: str) -> torch.Tensor:
    if isinstance(labels, torch.Tensor) and not labels.is_floating_point():
        labels = labels.long()
    elif isinstance(labels, torch.Tensor) and isinstance(outputs, torch.Tensor):
        labels = labels.to(outputs.dtype)
    if split_reference(name)[1]:
        loss = criterion(outputs, labels)
    else:
        try:
            loss = criterion(outputs, labels)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise DataError(f"{name} cannot compare the model's outputs with the training labels: {error}") from error
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise UsageError(f"criterion {name!r} gave {type(loss).__name__} instead of one number as a tensor")
    return loss.reshape(())


def _identity(spec: TrainSpec, seed: int) -> list[Any]:
    """All of ``spec`` that decides about the result, data included; user code by its source."""
    plain = asdict(replace(spec, dataloader=None, train_func=None))
    code = [_source(name) for name in (spec.train_func, spec.optimizer.name, spec.criterion.name)]
    loader: Any = None
    if isinstance(spec.dataloader, DataloaderSpec):
        loader = asdict(spec.dataloader)
    data = "" if spec.dataloader is None else open_dataloader(spec.dataloader, seed).digest()
    return [json.loads(json.dumps(plain, default=repr)), code, json.loads(json.dumps(loader, default=repr)), data]


def _source(code: Any) -> str:
    """Hash of the file or the function that user code is in."""
    if code is None:
        return ""
    if isinstance(code, str):
        location, attribute = split_reference(code)
        if not attribute:
            return code
        path = Path(location)
        return hashlib.sha256(path.read_bytes() if path.is_file() else code.encode()).hexdigest()
    try:
        return hashlib.sha256(inspect.getsource(code).encode()).hexdigest()
    except (OSError, TypeError):  # typed at a prompt, or compiled
        return getattr(code, "__qualname__", type(code).__qualname__)


__all__ = ["Trainer"]
