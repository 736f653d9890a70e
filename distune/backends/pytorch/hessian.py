"""Trace of the loss's Hessian with respect to each weight, for ``hawq_v2``.

Z. Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks", arXiv:1911.03852, section 3.2.
Hutchinson's estimator: for random signs ``z`` the expectation of ``z^T H z`` is the trace of ``H``, and ``H z`` takes
one pass through the gradient's graph, no Hessian. Each weight has vectors of its own, as in the paper: one vector over
all weights would cost less a piece, but its variance takes in what weights share with each other (on a net of two
layers, 4,000 such vectors left an error of 5%).

The score of an op is the paper's (section 3.3): average trace times perturbation, ``tr(H) / n * |Q(W) - W|^2`` with the
op's n weights and its own quantization. It is what rounding is expected to add to the loss, doubled.

A vector depends on the seed, the number of the batch, the weight's name and its own number alone, and how many are
drawn is decided for each batch and weight by itself. So the answer is the same however the work is spread over
processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distune.backends.base import LabelledBatch
from distune.backends.pytorch.program import ExportedModule
from distune.backends.pytorch.qparams import weight_qparams
from distune.backends.pytorch.runnable import arguments_of
from distune.backends.pytorch.second_derivatives import twice_differentiable
from distune.backends.pytorch.threads import intra_op_threads
from distune.backends.weight_only.quantize import quantize_weight
from distune.config.imports import import_object
from distune.data.user_code import user_code
from distune.errors import TrialError, UsageError
from distune.space.capability import Capability
from distune.space.op_config import OpConfig, TuningConfig

LOSS = "hawq_v2_loss"
"""Setting of the strategy that names the loss."""

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class HutchinsonSettings:
    """When an estimate is good enough.

    Attributes:
        relative_error: Standard error of the mean over the vectors, as a share of the trace.
        least, most: Vectors of one weight and batch.
    """

    relative_error: float = 0.1
    least: int = 8
    most: int = 64


@dataclass(frozen=True)
class Trace:
    """Estimated trace of one weight's Hessian.

    Attributes:
        error: Standard error of ``value``.
        vectors: How many were averaged.
    """

    value: float
    error: float
    vectors: int


def hessian_traces(
    loss: Callable[[], Tensor],
    weights: Mapping[str, Tensor],
    seed: int,
    batch: int,
    settings: HutchinsonSettings = HutchinsonSettings(),
) -> dict[str, Trace]:
    """Traces of the Hessian of ``loss`` with respect to each of ``weights``, by name; a name is part of its seed.

    Memory is that of the graph of one batch's gradient, plus two copies of the weights.

    Args:
        loss: Runs the model and gives the loss of one batch; called once, with gradients on.
        weights: What the loss depends on; one without influence has the trace 0.
        batch: Number of the batch in the data.

    Raises:
        TrialError: The model cannot be differentiated twice, or the loss is not finite.
    """
    if not weights:
        return {}
    values = list(weights.values())
    required = [value.requires_grad for value in values]
    with torch.enable_grad(), _differentiable_attention():
        try:
            for value in values:
                value.requires_grad_(True)
            return _estimated(loss, weights, seed, batch, settings)
        finally:
            for value, before in zip(values, required, strict=True):
                value.requires_grad_(before)


def hessian_scores(
    model: ExportedModule,
    capability: Capability,
    config: TuningConfig,
    groups: Sequence[str],
    batches: Sequence[LabelledBatch],
    loss: Loss,
    seed: int,
) -> dict[str, float]:
    """The score of each group that has weights, the mean over ``batches``; 0 for what ``config`` does not quantize.

    Raises:
        UserCodeError, UsageError, TrialError: As ``loss_of`` and ``hessian_traces``.
    """
    if model.partition is not None:
        raise UsageError(
            "hawq_v2 differentiates a loss of the whole model, which was exported in parts only; use mse or mse_v2"
        )
    members = [op for op in capability.ops if op.group in set(groups) and op.has_weight and op.name in config.by_name]
    factors = {op.name: _perturbation(model, op.name, config.by_name[op.name]) for op in members}
    names = dict.fromkeys(model.op[op.name].weight for op in members if factors[op.name] > 0)
    module = twice_differentiable(model.fresh())
    tensors = dict((*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)))
    weights = {name: tensors[name] for name in names}
    scores = {op.group: 0.0 for op in members}
    for batch in batches:
        with intra_op_threads(1):
            closure = loss_of(module, arguments_of(model, batch.feed), batch.labels, loss)
            traces = hessian_traces(closure, weights, seed, batch.index)
        for op in members:
            if factors[op.name] > 0:
                scores[op.group] += factors[op.name] * traces[model.op[op.name].weight].value
    return {group: score / len(batches) for group, score in scores.items()}


def perturbation(weight: NDArray[np.float32], rounded: NDArray[np.float32]) -> float:
    """``|Q(W) - W|^2 / n``: the factor that turns a trace into the score of an op."""
    difference = rounded.astype(np.float64) - weight
    return float(np.square(difference).mean()) if difference.size else 0.0


def loss_of(module: nn.Module, arguments: Sequence[Tensor | None], labels: Any, loss: Loss) -> Callable[[], Tensor]:
    """The loss of ``module`` on one batch, for ``hessian_traces``.

    Args:
        labels: As the data give them.

    Raises (the closure):
        UserCodeError: The user's loss raises.
        UsageError: It gives something else than one number.
    """
    if labels is None:
        raise UsageError(f"{LOSS} compares outputs with labels, but the calibration data carry none: give them labels")
    target = _target(labels)

    def compute() -> Tensor:
        output = module(*arguments)
        with user_code(LOSS):
            value = loss(output, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = (
                f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            )
            raise UsageError(f"{LOSS} must give one number as a tensor, not {what}; average over the samples")
        return value.reshape(())

    return compute


def resolve_loss(given: Any) -> Loss:
    """The loss that the strategy's setting means: a function, ``module:name`` or ``file.py:name``; a class is built.

    Raises:
        UsageError: There is no such name, or it cannot be called.
        UserCodeError: Importing or building it raises.
    """
    found = import_object(given, LOSS) if isinstance(given, str) else given
    if isinstance(found, type):
        with user_code(LOSS):
            found = found()
    if not callable(found):
        raise UsageError(f"{LOSS}: {given!r} is a {type(found).__name__}, not a function (output, target) -> loss")
    loss: Loss = found
    return loss


def _perturbation(model: ExportedModule, name: str, config: OpConfig) -> float:
    if config.weight is None or not config.is_quantized or not model.op[name].weight:
        return 0.0
    weight = model.tensor(model.op[name].weight).float()
    if config.mode == "weight_only":
        rounding = replace(config.weight, algorithm="HQQ" if config.weight.algorithm == "HQQ" else "RTN")
        values: NDArray[np.float32] = weight.numpy().T
        return perturbation(values, quantize_weight(values, rounding).effective())
    qparams = weight_qparams(weight, config.weight)
    scale = qparams.scale.reshape(-1, *[1] * (weight.dim() - 1))
    rounded = torch.clamp(torch.round(weight / scale), qparams.quant_min, qparams.quant_max) * scale
    return perturbation(weight.numpy(), rounded.numpy())


def _estimated(
    loss: Callable[[], Tensor], weights: Mapping[str, Tensor], seed: int, batch: int, settings: HutchinsonSettings
) -> dict[str, Trace]:
    value = loss()
    if not math.isfinite(float(value.detach())):
        raise TrialError(f"Hessian trace: the loss of batch {batch} is {float(value.detach())}")
    try:
        gradients = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise TrialError(f"Hessian trace: the loss has no gradient: {error}") from error
    found = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is None or not gradient.requires_grad:  # no influence, or a linear one
            found[name] = Trace(0.0, 0.0, 0)
            continue
        products: list[float] = []
        while len(products) < settings.most:
            signs = _signs(weight, _generator(f"{seed}:{batch}:{name}:{len(products)}"))
            products.append(_product(gradient, weight, signs))
            if len(products) >= settings.least and _error(products) <= settings.relative_error * abs(_mean(products)):
                break
        found[name] = Trace(_mean(products), _error(products), len(products))
    return found


def _product(gradient: Tensor, weight: Tensor, signs: Tensor) -> float:
    """``z^T H z``."""
    try:
        (row,) = torch.autograd.grad(gradient, weight, signs, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise TrialError(f"Hessian trace: the model cannot be differentiated twice: {error}") from error
    return 0.0 if row is None else float((row.double() * signs).sum())


def _mean(products: list[float]) -> float:
    return math.fsum(products) / len(products)


def _error(products: list[float]) -> float:
    """Standard error of the mean."""
    count, mean = len(products), _mean(products)
    if count < 2:
        return math.inf
    return math.sqrt(math.fsum((value - mean) ** 2 for value in products) / (count - 1) / count)


def _generator(identity: str) -> torch.Generator:
    digest = hashlib.sha256(identity.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _signs(weight: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, weight.shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(weight.dtype).to(weight.device)


def _differentiable_attention() -> AbstractContextManager[None]:
    """The fused attention kernels have no second derivative; the plain one has."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


def _target(labels: Any) -> Any:
    """Labels as tensors; integers as int64, which torch's losses ask for."""
    if isinstance(labels, tuple):
        return tuple(_target(label) for label in labels)
    tensor = torch.from_numpy(np.ascontiguousarray(labels))
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


__all__ = [
    "LOSS",
    "HutchinsonSettings",
    "Loss",
    "Trace",
    "hessian_scores",
    "hessian_traces",
    "loss_of",
    "perturbation",
    "resolve_loss",
]
