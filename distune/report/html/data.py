"""What the page's charts are drawn from, as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from distune.report.evidence import Evidence
from distune.report.result import TrialEntry
from distune.space.op_config import OpConfig, TensorConfig, TuningConfig


def page_data(evidence: Evidence) -> dict[str, Any]:
    """Plain values; NaN and infinity become ``None``. Configs are written as one number an op into ``options``."""
    result = evidence.result
    options: dict[OpConfig, int] = {}
    configs = {
        trial: [options.setdefault(option, len(options)) for _, option in config.ops]
        for trial, config in evidence.configs.items()
    }
    best = None if result.best is None else evidence.configs.get(result.best.trial)
    criterion = result.criterion
    data = {
        "higher": True if criterion is None else criterion.higher_is_better,
        "target": None if criterion is None else criterion.target,
        "fp32": None
        if result.baseline is None
        else {"accuracy": result.baseline.accuracy, "size": result.baseline.size_bytes},
        "best": None if result.best is None else result.best.trial,
        "pareto": [point.trial for point in result.pareto],
        "ops": [[op.name, op.op_type, op.group] for op in evidence.ops],
        "options": [described(option) for option in options],
        "trials": [_trial(trial, configs.get(trial.id)) for trial in result.trials],
        "impact": _impact(evidence, best),
        "spans": [
            [span.rank, span.kind, round(span.start_s, 3), round(span.end_s, 3), span.label] for span in evidence.spans
        ],
        "diagnosis": evidence.diagnosis,
    }
    plain: dict[str, Any] = _finite(data)
    return plain


def described(option: OpConfig) -> str:
    """An op config in a few words, e.g. ``static uint8 asym minmax / int8 sym per_channel``."""
    if not option.is_quantized:
        return option.mode
    parts = [_tensor(option.activation), _tensor(option.weight)]
    return f"{option.mode} " + " / ".join(part for part in parts if part)


def final_mode(config: TuningConfig | None, name: str) -> str:
    """What an op runs as in ``config``: its weight's (else activation's) dtype, or its floating-point precision."""
    option = None if config is None else config.by_name.get(name)
    if option is None:
        return ""
    if not option.is_quantized:
        return option.mode
    tensor = option.weight or option.activation
    if tensor is None:
        return option.mode
    return f"{tensor.dtype}{tensor.bits or ''}" if tensor.dtype in ("int", "uint") else tensor.dtype


def _tensor(tensor: TensorConfig | None) -> str:
    if tensor is None:
        return ""
    width = f"{tensor.dtype}{tensor.bits or ''}" if tensor.dtype in ("int", "uint") else tensor.dtype
    group = f"group {tensor.group_size}" if tensor.group_size else tensor.granularity
    return f"{width} {tensor.scheme} {group} {tensor.algorithm}"


def _trial(trial: TrialEntry, config: Sequence[int] | None) -> dict[str, Any]:
    latency = trial.latency
    return {
        "id": trial.id,
        "stage": trial.stage,
        "label": trial.label,
        "verdict": trial.verdict,
        "accuracy": trial.accuracy,
        "low": trial.accuracy_low,
        "high": trial.accuracy_high,
        "ratio": None if latency is None else latency.ratio,
        "ci": None if latency is None else [latency.ci_low, latency.ci_high],
        "size": trial.size_bytes,
        "samples": trial.samples,
        "seconds": round(trial.end_s - trial.start_s, 3),
        "rank": trial.rank,
        "reason": trial.reason,
        "recipes": ", ".join(f"{name}={value}" for name, value in trial.recipes.items()),
        "config": config,
    }


def _impact(evidence: Evidence, best: TuningConfig | None) -> list[list[Any]]:
    """Group, gain, final mode and number of ops, in graph order."""
    order = dict.fromkeys(op.group for op in evidence.ops)
    sizes: dict[str, int] = {}
    for op in evidence.ops:
        sizes[op.group] = sizes.get(op.group, 0) + 1
    known = evidence.result.op_impact
    names = [name for name in order if name in known] + [name for name in known if name not in order]
    return [[name, known[name], final_mode(best, name), sizes.get(name, 1)] for name in names]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


__all__ = ["described", "final_mode", "page_data"]
