"""Runs one trial of a function: ``python -m distune.script.function_main file.py:function``.

The function gets the parameters by keyword and returns a number, metrics by name, or nothing if it logs them itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

from distune.config.imports import import_object
from distune.metrics.base import as_number
from distune.script.context import PARAMETERS_VARIABLE, log_metric


def main(reference: str, first_metric: str) -> None:
    """Call the function and log what it returns; one number is ``first_metric``."""
    function = import_object(reference, "the function to tune")
    returned = function(**json.loads(os.environ[PARAMETERS_VARIABLE]))
    if isinstance(returned, Mapping):
        for name, value in returned.items():
            log_metric(str(name), as_number(value, f"{reference}: {name}"))
    elif returned is not None:
        log_metric(first_metric, as_number(returned, reference))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
