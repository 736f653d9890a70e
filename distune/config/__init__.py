"""The configuration, from a file or from the classes below, and the job that it becomes.

The classes bring the schema along; they are imported when first asked for, so that a worker that reads a job does not
pay for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distune.config.conf import (
        AccuracyCriterion,
        BenchmarkConfig,
        MixedPrecisionConfig,
        PostTrainingQuantConfig,
        QuantizationAwareTrainingConfig,
        TuningCriterion,
    )
    from distune.config.process_options import options, set_random_seed, set_resume_from, set_tensorboard, set_workspace

_MODULES = {
    "conf": (
        "AccuracyCriterion",
        "BenchmarkConfig",
        "MixedPrecisionConfig",
        "PostTrainingQuantConfig",
        "QuantizationAwareTrainingConfig",
        "TuningCriterion",
    ),
    "process_options": ("options", "set_random_seed", "set_resume_from", "set_tensorboard", "set_workspace"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"distune.config.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
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
]
