"""``TrainableModule``: a module with fake quantization, ready to be trained, and what it has learned at the end.

What training gives is not another graph but weights for the user's own module and ranges of activations: from those the
quantized model is made as after calibration, so that it lowers, exports and applies again in the same way.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from distune.backends.pytorch.program import ExportedModule
from distune.backends.pytorch.qat.modes import norm_settings, restore_settings, set_training
from distune.backends.pytorch.qat.quantizer import TrainingQuantizer
from distune.errors import TrialError
from distune.space.op_config import TuningConfig

Range = tuple[float, float]

_SMALLEST_SCALE = 1e-8
"""What a batch norm's scale of zero becomes: torchao's training form divides by it."""

_FROZEN_SHARE = 0.25
"""Share of the epochs, the last ones, in which ranges and batch norm's statistics stand still (with two or more)."""


@dataclass(frozen=True)
class Trained:
    """What training has learned.

    Attributes:
        state: Parameters and buffers of the user's module by name.
        ranges: Lowest and highest value of each activation tensor, by its name in the folded graph.
        losses: Mean loss of each epoch.
    """

    state: Mapping[str, torch.Tensor]
    ranges: Mapping[str, Range]
    losses: tuple[float, ...] = ()

    def put_in(self, module: ExportedModule) -> ExportedModule:
        """A copy of ``module`` with the trained weights."""
        graph = copy.deepcopy(module.fresh())
        with torch.no_grad():
            tensors = _tensors(graph)
            for name, trained in self.state.items():
                tensors[name].copy_(trained)
        return replace(module, graph_module=graph)


class TrainableModule:
    """A copy of an exported module with fake quantization by a tuning config; the original is left as it is.

    Args:
        plain: As exported, batch norm included.
        folded: ``plain.folded()``.
        config: Effective.

    Attributes:
        module: What is trained; ``train()`` and ``eval()`` turn batch norm and dropout.
    """

    def __init__(self, plain: ExportedModule, folded: ExportedModule, config: TuningConfig) -> None:
        graph = copy.deepcopy(plain.fresh())
        self._names = tuple(_tensors(graph))
        self._settings = norm_settings(graph)
        self._frozen_statistics = False
        _lift_zero_scales(graph)
        set_training(graph, True)
        quantizer = TrainingQuantizer(plain, folded, config)
        self.module: GraphModule = prepare_qat_pt2e(graph, quantizer)
        self._activations = quantizer.activations
        restore_settings(self.module, self._settings)
        self.module.train = types.MethodType(self._train, self.module)
        self.module.eval = types.MethodType(lambda module: self._train(module, False), self.module)

    def begin_epoch(self, index: int, epochs: int) -> None:
        """Turn to training; in the last quarter of two or more epochs, ranges and batch norm statistics are frozen.

        Args:
            index: Of the epoch, from 0.
            epochs: In all.
        """
        frozen = epochs > 1 and index >= epochs - max(1, int(epochs * _FROZEN_SHARE))
        self.freeze(frozen)
        self.module.train()

    def freeze(self, frozen: bool = True) -> None:
        """Let ranges and batch norm's statistics stand still from now on, or move again."""
        self._frozen_statistics = frozen
        for each in self._activations.values():
            each.observing = not frozen

    def learned(self, losses: tuple[float, ...] = ()) -> Trained:
        """What it knows now.

        Raises:
            TrialError: It has seen no batch yet.
        """
        ranges = {name: each.range for name, each in self._activations.items()}
        if any(low != low for low, _ in ranges.values()):
            raise TrialError("the module was not trained: no batch has passed through it, so no range is known")
        return Trained({name: t.detach().clone() for name, t in self._own_tensors().items()}, ranges, losses)

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on, optimizer aside."""
        ranges = {
            f"{kind}:{name}": getattr(each, kind).clone()
            for name, each in self._activations.items()
            for kind in ("low", "high")
        }
        return {**{f"module:{name}": t.detach().clone() for name, t in self._own_tensors().items()}, **ranges}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what ``state`` gave."""
        with torch.no_grad():
            for name, tensor in self._own_tensors().items():
                tensor.copy_(state[f"module:{name}"])
            for name, each in self._activations.items():
                each.low.copy_(state[f"low:{name}"])
                each.high.copy_(state[f"high:{name}"])

    def _own_tensors(self) -> dict[str, torch.Tensor]:
        found = _tensors(self.module)
        return {name: found[name] for name in self._names if name in found}

    def _train(self, module: GraphModule, mode: bool = True) -> GraphModule:
        set_training(module, mode, self._frozen_statistics)
        for each in self._activations.values():
            each.observing = mode and not self._frozen_statistics
        module.training = mode
        return module


_TRAINED_NOW: list[TrainableModule] = []


@contextmanager
def being_trained(module: TrainableModule) -> Iterator[None]:
    """Inside, ``trained_now`` is ``module``: a user's training loop tells its epochs to callbacks made elsewhere."""
    _TRAINED_NOW.append(module)
    try:
        yield
    finally:
        _TRAINED_NOW.remove(module)


def trained_now() -> TrainableModule | None:
    """What a trial of this process trains at the moment, ``None`` between trials."""
    return _TRAINED_NOW[-1] if _TRAINED_NOW else None


def _tensors(module: GraphModule) -> dict[str, torch.Tensor]:
    """Parameters and buffers by every name that they have."""
    parameters = module.named_parameters(remove_duplicate=False)
    buffers = module.named_buffers(remove_duplicate=False)
    return {**dict(parameters), **dict(buffers)}


def _lift_zero_scales(graph: GraphModule) -> None:
    tensors = _tensors(graph)
    for node in graph.graph.nodes:
        if node.target == torch.ops.aten.batch_norm.default:
            scale = tensors.get(str(getattr(node.args[1], "target", "")))
            if scale is not None:
                with torch.no_grad():
                    scale[scale == 0] = _SMALLEST_SCALE


__all__ = ["Range", "TrainableModule", "Trained", "being_trained", "trained_now"]
