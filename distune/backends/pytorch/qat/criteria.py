"""Optimizers and losses by their names in the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from distune.config.imports import import_object, split_reference
from distune.config.job import ComponentSpec
from distune.data.user_code import user_code
from distune.errors import UsageError

Criterion = Callable[[Any, Any], torch.Tensor]
"""Gets outputs and labels, gives the loss."""


def make_optimizer(spec: ComponentSpec, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of ``torch.optim``, or what the user's function makes of the parameters.

    Raises:
        UsageError: torch refuses an argument, or the user's function gives something else.
        UserCodeError: The user's function raises.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if split_reference(spec.name)[1]:
        build = import_object(spec.name, "optimizer")
        with user_code(f"optimizer {spec.name!r}"):
            made = build(trained, **spec.args)
        if not isinstance(made, torch.optim.Optimizer):
            raise UsageError(f"optimizer {spec.name!r} gave a {type(made).__name__}; expected a torch.optim.Optimizer")
        return made
    try:
        made = getattr(torch.optim, spec.name)(trained, **spec.args)
    except (TypeError, ValueError) as error:
        raise UsageError(f"quantization.train.optimizer: {spec.name}: {error}") from error
    assert isinstance(made, torch.optim.Optimizer)  # every name that the schema knows is one
    return made


def needs_teacher(spec: ComponentSpec) -> bool:
    """Whether the loss compares with the fp32 model."""
    return spec.name == "KnowledgeDistillationLoss"


def make_criterion(spec: ComponentSpec) -> Criterion:
    """The loss of ``torch.nn``, or the user's function or class.

    Raises:
        UsageError: torch refuses an argument.
        UserCodeError: The user's class raises.
    """
    if split_reference(spec.name)[1]:
        found = import_object(spec.name, "criterion")
        with user_code(f"criterion {spec.name!r}"):
            function: Any = found(**spec.args) if inspect.isclass(found) else found
        return cast("Criterion", function)
    try:
        if needs_teacher(spec):
            return KnowledgeDistillationLoss(**spec.args)
        made: Criterion = getattr(torch.nn, spec.name)(**spec.args)
    except (TypeError, ValueError) as error:
        raise UsageError(f"quantization.train.criterion: {spec.name}: {error}") from error
    return made


class KnowledgeDistillationLoss:
    """Weighted sum of the cross entropy with the labels and the divergence from the fp32 model's softened outputs.

    G. Hinton, O. Vinyals, J. Dean, arXiv:1503.02531, section 2.

    Attributes:
        teacher_outputs: Of the batch that the loss is asked for next.
    """

    def __init__(self, temperature: float = 1.0, loss_weights: tuple[float, float] = (0.5, 0.5)) -> None:
        if temperature <= 0 or len(loss_weights) != 2:
            raise ValueError("temperature must be above 0 and loss_weights two numbers: labels, teacher")
        self._temperature = temperature
        self._labels, self._teacher = loss_weights
        self.teacher_outputs: torch.Tensor | None = None

    def __call__(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.teacher_outputs is None:
            raise UsageError("KnowledgeDistillationLoss: there are no outputs of the teacher to compare with")
        t = self._temperature
        hard = cross_entropy(outputs, labels)
        student, teacher = log_softmax(outputs / t, -1), log_softmax(self.teacher_outputs / t, -1)
        soft = kl_div(student, teacher, reduction="batchmean", log_target=True)
        return self._labels * hard + self._teacher * t * t * soft


__all__ = ["Criterion", "KnowledgeDistillationLoss", "make_criterion", "make_optimizer", "needs_teacher"]
