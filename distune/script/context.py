"""What a script that is tuned calls: ``get_parameter`` and ``log_metric``.

Outside of a trial both do no harm: parameters have their defaults and metrics go nowhere, so that the same script runs
on its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from distune.errors import UsageError

PARAMETERS_VARIABLE = "DISTUNE_TRIAL_PARAMETERS"
METRICS_VARIABLE = "DISTUNE_TRIAL_METRICS"

_MISSING = object()


def get_parameter(name: str, default: Any = _MISSING) -> Any:
    """The value of a parameter in this trial; ``default`` where there is no trial or it is not tuned.

    Raises:
        UsageError: There is neither a value nor a default.
    """
    values = json.loads(os.environ.get(PARAMETERS_VARIABLE) or "{}")
    if name in values:
        return values[name]
    if default is _MISSING:
        known = f"; tuned are: {', '.join(values)}" if values else ", and no trial is running"
        raise UsageError(f"get_parameter({name!r}): no such parameter{known}; give a default")
    return default


def log_metric(name: str, value: float) -> None:
    """Report a metric of this trial; of several values of one metric the last counts.

    Raises:
        UsageError: ``value`` is no number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"log_metric({name!r}): expected a number, got {value!r:.80}") from None
    file = os.environ.get(METRICS_VARIABLE)
    if file:
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([name, number]) + "\n")
