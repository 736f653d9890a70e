"""What a journal knows: results by the work that they answer, and the decisions of a run.

Data of a ``result`` record: ``{"key", "type", "body", "meta"}``, where ``key`` (``request_key``) names the work,
whoever did it and at which attempt, and ``meta`` holds what the master adds (rank, host, attempt, times). Data of a
``decision`` record: ``{stage, trial, config_hash, label, verdict, accuracy, ...}``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from distune.errors import JournalError
from distune.journal.record import Record, as_read
from distune.trial.messages import (
    Accuracy,
    Baseline,
    Calibrate,
    Diagnose,
    Export,
    Failure,
    Footprint,
    Inspect,
    Judge,
    Latency,
    MeasureFootprint,
    MeasureLatency,
    Probe,
    ProbeAnswer,
    RequestBody,
    Survey,
)

JournalledBody = Accuracy | Latency | Footprint | ProbeAnswer | Failure
"""Answers that are worth keeping. The others are bytes (they live in the workspace's cache) or cheap to ask again."""

_TYPES: dict[str, type[JournalledBody]] = {
    "accuracy": Accuracy,
    "latency": Latency,
    "footprint": Footprint,
    "probe": ProbeAnswer,
    "failure": Failure,
}
_NAMES = {body: name for name, body in _TYPES.items()}
_FIELDS = {body: tuple(item.name for item in fields(body)) for body in _NAMES}

VOLATILE = frozenset(
    {"rank", "host", "hosts", "attempt", "attempts", "start_s", "end_s", "seconds", "elapsed_s", "time"}
    | {"quantize_s", "evaluate_s", "inference_s"}
    | {"tied", "latency", "ratio", "ci_low", "ci_high", "candidate_ms", "baseline_ms"}
)
"""Fields of a decision that clocks and the placement of work decide; two runs that decide the same may differ here."""


@dataclass(frozen=True)
class Known:
    """A result that a journal holds."""

    body: JournalledBody
    meta: Mapping[str, Any]


def request_key(body: RequestBody) -> str:
    """Names a piece of work: equal for every attempt, rank and run of the same work.

    Probes are named by kind, then config and arguments, then ops and shard.
    """
    match body:
        case Inspect():
            return "inspect"
        case Survey():
            return f"survey:{body.shard}/{body.shards}"
        case Baseline():
            return "baseline"
        case Calibrate():
            kind = "histograms" if body.histograms else "ranges"
            return f"calibrate:{_digest(body.variant)}:{body.sampling_size}:{kind}:{body.shard}/{body.shards}"
        case Judge():
            floor = "" if body.floor is None else f":{body.floor!r}"
            base = f":of {body.base}" if body.base else ""
            return f"judge:{body.config.hash}:{body.accuracy}{floor}{base}{':deployed' if body.deployed else ''}"
        case MeasureLatency():
            return f"latency:{body.config.hash}"
        case MeasureFootprint():
            return f"footprint:{body.config.hash}"
        case Probe():
            return f"{_question(body)}{_digest(body.ops)}:{body.shard}/{body.shards}"
        case Diagnose():
            looked_at = _digest((body.ops, body.batches, body.tensors))
            return f"diagnose:{body.config.hash}:{looked_at}"
        case Export():
            return f"export:{body.config.hash}"


def encode_result(key: str, body: JournalledBody, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Data of a ``result`` record.

    Args:
        key: ``request_key`` of the request.
        meta: Plain values: rank, host, attempt, times.

    Raises:
        TypeError: Answers of this kind are not journalled.
    """
    if type(body) not in _NAMES:
        raise TypeError(f"{type(body).__name__} is not journalled, only {', '.join(t.__name__ for t in _NAMES)}")
    return {
        "key": key,
        "type": _NAMES[type(body)],
        "body": {name: getattr(body, name) for name in _FIELDS[type(body)]},
        "meta": dict(meta),
    }


def decode_result(data: Mapping[str, Any]) -> tuple[str, JournalledBody, dict[str, Any]]:
    """Inverse of ``encode_result``: key, body and meta.

    Raises:
        JournalError: ``data`` has a type or a field that this distune does not know.
    """
    try:
        key, name, values, meta = data["key"], data["type"], dict(data["body"]), dict(data["meta"])
        body = _TYPES[name]
        known = {item.name: item for item in fields(body)}
        needed = {item.name for item in known.values() if item.default is MISSING and item.default_factory is MISSING}
    except (KeyError, TypeError, ValueError) as error:
        raise JournalError(f"a result of the journal cannot be read ({error!r}); {_REMEDY}") from error
    if unknown := sorted(values.keys() - known.keys()):
        raise JournalError(f"the journal's result {key} has fields unknown here: {', '.join(unknown)}; {_REMEDY}")
    if missing := sorted(needed - values.keys()):
        raise JournalError(f"the journal's result {key} lacks {', '.join(missing)}; {_REMEDY}")
    for field_name, value in values.items():
        if isinstance(value, list):  # every sequence of these messages is a tuple
            values[field_name] = tuple(value)
    return key, body(**values), meta


_REMEDY = "use the version of distune that wrote it, or start over with --fresh (the old journal is kept aside)"


def known_results(records: Iterable[Record]) -> dict[str, Known]:
    """The results of a journal by ``request_key``; of several for one key the last.

    A ``Failure`` of kind ``lost`` says nothing about the work and is left out.

    Raises:
        JournalError: A result cannot be read.
    """
    known: dict[str, Known] = {}
    for record in records:
        if record.kind == "result":
            key, body, meta = decode_result(record.data)
            if not (isinstance(body, Failure) and body.kind == "lost"):
                known[key] = Known(body, meta)
    return known


def decisions(records: Iterable[Record]) -> list[Mapping[str, Any]]:
    """The decisions that hold, in candidate order.

    A resumed run takes its decisions again. From where they differ from those journalled before (another exit policy)
    they are written anew under the same numbers, and what was journalled from that number on holds no more.
    """
    held: list[Mapping[str, Any]] = []
    for record in records:
        if record.kind == "decision":
            del held[int(record.data.get("number", len(held))) :]
            held.append(record.data)
    return held


def same_decision(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two decisions are the same but for clocks and places (``VOLATILE``)."""
    return not _differ("", as_read(a), as_read(b))


def same_decisions(a: Iterable[Record], b: Iterable[Record]) -> list[str]:
    """Differences between the decisions of two journals, in words; empty where both runs decided the same.

    Clocks, latency, rank and host (``VOLATILE``) are ignored at any depth. Both arguments may be a ``Journal``.
    """
    first, second = decisions(a), decisions(b)
    found = [
        f"decision {index} ({left.get('stage')}, {left.get('label') or left.get('config_hash')}): {difference}"
        for index, (left, right) in enumerate(zip(first, second, strict=False), start=1)
        for difference in _differ("", left, right)
    ]
    if len(first) != len(second):
        found.append(f"the first run took {len(first)} decisions, the second {len(second)}")
    return found


def _differ(path: str, left: Any, right: Any) -> list[str]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        keys = sorted((left.keys() | right.keys()) - VOLATILE)
        return [
            difference
            for key in keys
            for difference in _differ(f"{path}.{key}" if path else key, left.get(key), right.get(key))
        ]
    if left == right or (_is_nan(left) and _is_nan(right)):
        return []
    return [f"{path} is {left!r} in the first and {right!r} in the second"]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _question(probe: Probe) -> str:
    return f"probe:{probe.kind}:{_digest((probe.config.hash, dict(probe.args)))}:"


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
