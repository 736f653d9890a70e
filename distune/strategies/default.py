"""The default configuration: the first thing that nearly every strategy has judged."""

from __future__ import annotations

from dataclasses import replace

from distune.space.op_config import TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import Candidate, Stage


def default_config(space: TuningSpace, sampling_size: int) -> TuningConfig:
    """The preferred option of every op, calibrated with ``sampling_size`` samples where calibration is needed."""
    return space.effective(replace(space.default(), sampling_size=sampling_size))


def default_stage(space: TuningSpace) -> Stage:
    """The default configuration at every calibration sampling size; of several the best must be known."""
    return Stage(
        "default",
        [
            Candidate(default_config(space, size), "default" if index == 0 else f"default, {size} samples")
            for index, size in enumerate(space.sampling_sizes)
        ],
        accuracy="exact" if len(space.sampling_sizes) > 1 else "verdict",
    )
