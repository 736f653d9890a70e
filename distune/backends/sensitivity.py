"""Error of a model's outputs with one group of ops changed at a time, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.backends.base import Feed, Outputs
from distune.errors import TrialError
from distune.space.capability import Capability
from distune.space.op_config import FP32, OpConfig, TuningConfig

Predict = Callable[[Feed], Outputs]


def op_sensitivity(
    capability: Capability,
    make: Callable[[TuningConfig | None], Predict],
    config: TuningConfig,
    groups: Sequence[str],
    feeds: Sequence[Feed],
    args: Mapping[str, Any],
) -> dict[str, float]:
    """Mean squared error of the model's outputs against fp32, relative to their power, one group changed at a time.

    One changed model is held at a time, and the fp32 model's outputs for all of ``feeds``.

    Args:
        make: Gives the model of a config (``None``: fp32), ready to predict.
        config: What is changed.
        args: ``direction``: ``fallback`` (default) puts the group into fp32, ``revert`` quantizes it, by the group's
            configs in ``args["quantized"]`` (a tuning config as JSON) or by its default.

    Raises:
        TrialError: Unknown direction.
    """
    direction = args.get("direction", "fallback")
    if direction not in ("fallback", "revert"):
        raise TrialError(f"op_sensitivity: direction {direction!r} is neither 'fallback' nor 'revert'")
    quantized: Mapping[str, OpConfig] = {op.name: op.options[0] for op in capability.ops}
    if args.get("quantized"):
        quantized = {**quantized, **TuningConfig.from_json(args["quantized"]).by_name}
    reference = make(None)
    expected = [reference(feed) for feed in feeds]
    power = sum(squares(value, value)[1] for outputs in expected for value in outputs)
    scores = {}
    for group in groups:
        members = [op.name for op in capability.ops if op.group == group and op.name in config.by_name]
        changes = {name: FP32 if direction == "fallback" else quantized[name] for name in members}
        candidate = make(config.with_ops(changes))
        error = 0.0
        for feed, outputs in zip(feeds, expected, strict=True):
            pairs = zip(outputs, candidate(feed), strict=True)
            error += sum(squares(value, actual)[0] for value, actual in pairs)
        scores[group] = error / power if power else 0.0
        del candidate
    return scores


def squares(expected: NDArray[Any], actual: NDArray[Any]) -> tuple[float, float]:
    """Squared error and squared value, summed; where fp32 itself is not finite nothing is compared."""
    finite = np.isfinite(expected)
    reference = expected[finite].astype(np.float64)
    difference = actual[finite].astype(np.float64) - reference
    return float(difference @ difference), float(reference @ reference)
