"""JSON schema of ``result.json``, made from the dataclasses and their docstrings.

``python -m distune.report.result_schema`` prints it.
"""

from __future__ import annotations

import json
from typing import Any

from distune.report.plain import schema_of
from distune.report.result import SCHEMA_VERSION, RunResult


def schema() -> dict[str, Any]:
    """The schema, in the dialect of JSON Schema 2020-12."""
    body = schema_of(RunResult)
    body["properties"]["schema_version"]["const"] = SCHEMA_VERSION
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "distune result.json", **body}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
