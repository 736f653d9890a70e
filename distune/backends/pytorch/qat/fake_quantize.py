"""Fake quantization with the very scales that the converted model has: rounded forwards, not backwards.

The gradient passes straight through where a value lies in the range and is zero where it is clipped (Y. Bengio, N.
Léonard, A. Courville, arXiv:1308.3432; B. Jacob et al., arXiv:1712.05877, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

from distune.backends.pytorch.qparams import activation_qparams, weight_qparams
from distune.space.op_config import TensorConfig

AVERAGING = 0.01
"""Share of a new batch in the moving average of an activation's range (torch's own default)."""


class ActivationFakeQuantize(FakeQuantizeBase):  # type: ignore[misc]
    """Rounds an activation; its range is the moving average of the batches' ranges.

    Attributes:
        low, high: The range; NaN before the first batch.
        observing: Whether batches still move the range.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, config: TensorConfig) -> None:
        super().__init__()
        self._config = config
        self.observing = True
        self.register_buffer("low", torch.tensor(float("nan"), dtype=torch.float64))
        self.register_buffer("high", torch.tensor(float("nan"), dtype=torch.float64))

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value; NaN before the first batch."""
        return float(self.low), float(self.high)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        if self.observing:
            low, high = torch.aminmax(value.detach())
            if bool(self.low.isnan()):
                self.low.fill_(low), self.high.fill_(high)
            else:
                self.low.add_(AVERAGING * (low.double() - self.low))
                self.high.add_(AVERAGING * (high.double() - self.high))
        return self.rounded(value)

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        """``value`` on the grid of the range as it is."""
        if not value.is_floating_point() or bool(self.low.isnan()):
            return value
        found = activation_qparams(*self.range, self._config)
        return torch.fake_quantize_per_tensor_affine(
            value, float(found.scale), int(found.zero_point), found.quant_min, found.quant_max
        )

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point."""
        found = activation_qparams(*self.range, self._config)
        return found.scale, found.zero_point


class FollowingFakeQuantize(FakeQuantizeBase):  # type: ignore[misc]
    """Rounds a tensor whose values are those of another one: with that one's range, which it leaves alone."""

    def __init__(self, followed: ActivationFakeQuantize) -> None:
        super().__init__()
        self._followed = [followed]  # in a list: its buffers are not ours

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self._followed[0].rounded(value)

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point."""
        return self._followed[0].calculate_qparams()


class WeightFakeQuantize(FakeQuantizeBase):  # type: ignore[misc]
    """Rounds a weight; its scales follow it."""

    def __init__(self, config: TensorConfig, reduce_range: bool) -> None:
        super().__init__()
        self._config = config
        self._reduce_range = reduce_range
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        found = weight_qparams(value, self._config, reduce_range=self._reduce_range)
        assert found.axis is not None  # a weight has a scale per channel
        self._last = found.scale, found.zero_point
        return torch.fake_quantize_per_channel_affine(
            value, found.scale, found.zero_point.to(torch.int32), found.axis, found.quant_min, found.quant_max
        )

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of the weight that came last."""
        assert self._last is not None  # asked for when a graph has run
        return self._last


class Constructor:
    """What PT2E makes one module with. It copies what it is given: this stays what it is."""

    def __init__(self, make: Callable[[], FakeQuantizeBase]) -> None:
        self._make = make
        self.__name__ = type(self).__name__

    def with_args(self, **_: Any) -> Callable[[], FakeQuantizeBase]:
        """The same: what the module needs to know is known."""
        return self._make

    def __call__(self) -> FakeQuantizeBase:
        return self._make()

    def __deepcopy__(self, memo: dict[int, Any]) -> Constructor:
        return self


__all__ = ["ActivationFakeQuantize", "Constructor", "FollowingFakeQuantize", "WeightFakeQuantize"]
