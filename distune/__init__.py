"""distune: the fastest quantized model that provably keeps the accuracy, found by many ranks at once."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from distune.script.context import get_parameter, log_metric

__version__ = "0.1.0"

_OF_INC = {
    **dict.fromkeys(
        (
            "AccuracyCriterion",
            "BenchmarkConfig",
            "MixedPrecisionConfig",
            "PostTrainingQuantConfig",
            "QuantizationAwareTrainingConfig",
            "TuningCriterion",
            "options",
            "set_random_seed",
            "set_resume_from",
            "set_tensorboard",
            "set_workspace",
        ),
        "distune.config",
    ),
    "Metric": "distune.api.metric",
}
"""Names that scripts for INC 2.x import from the package itself, and where they are; imported when asked for."""


def __getattr__(name: str) -> Any:
    if name in _OF_INC:
        return getattr(import_module(_OF_INC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["__version__", "get_parameter", "log_metric"]
