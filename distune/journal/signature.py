"""What of a job must be the same for a run to be resumed, and how two of those differ, in words."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from distune.config.job import DataloaderSpec, TuningJob
from distune.config.secret import Secret

_SHOWN = 80
"""Characters of a value that a message shows at most."""


def signature(job: TuningJob, digest: str) -> dict[str, Any]:
    """Plain values of everything that decides about the results of a run.

    Left out is what may change between two starts of the same run: ranks, workspace, isolation, when to stop. User code
    contributes its qualified name and, where it can be had, a hash of its source.

    Args:
        digest: SHA-256 of the model and the data (``messages.Inspection.digest``). Where it is given, the model's path
            is left out: the same file may lie elsewhere.
    """
    model = _fields(job.model, skip={"live", *(("path", "weights", "trust_pickle") if digest else ())})
    model["digest"] = digest
    if ".py:" in job.model.path:
        model["builder"] = _plain(job.model.path)
    if job.model.live is not None:
        model["live"] = _code(type(job.model.live))
    return {
        "model": model,
        "approach": job.approach,
        "device": job.device,
        "constraints": [_fields(constraint, skip={"where"}) for constraint in job.constraints],
        "recipes": _plain(job.recipes),
        **({"excluded_precisions": _plain(job.excluded_precisions)} if job.excluded_precisions else {}),
        "calibration": _plain(job.calibration),
        **({"train": _plain(job.train)} if job.train is not None else {}),
        "evaluation": _plain(job.evaluation),
        "criterion": _plain(job.criterion),
        "objectives": _plain(job.objectives),
        "parameters": _plain(job.parameters),
        "metrics": [_fields(metric, skip=set()) for metric in job.metrics],
        "strategy": _plain(job.strategy),
        "quant_level": job.quant_level,
        "seed": job.seed,
        # what decides how closely trials are looked at; not written where it is as it always was
        **({"ranking": job.ranking} if job.ranking != "full" else {}),
        **({"search": job.search} if job.search != "section" else {}),
        **({"search_width": job.search_width} if job.search_width != 3 else {}),
        **({"refine_trials": job.refine_trials} if job.refine_trials is not None else {}),
        **({"early_verdict": job.early_verdict} if not job.early_verdict else {}),
        # of the exit policy only what changes the kind of the result: without it nothing is judged
        "performance_only": job.exit_policy.performance_only,
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two signatures, one sentence a key: ``criterion.tolerance: was 0.01, now 0.02``.

    Empty where the run that wrote ``old`` can be resumed by ``new``.
    """
    found: list[str] = []
    _compare("", old, new, found)
    return found


def _fields(value: Any, skip: set[str]) -> dict[str, Any]:
    return {item.name: _plain(getattr(value, item.name)) for item in fields(value) if item.name not in skip}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _named_code(value)
    if isinstance(value, Secret):
        return repr(value)  # that there is one; another token is no other job
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and type(value).__module__ == DataloaderSpec.__module__:
        return {item.name: _dataloader_or_plain(item.name, getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=repr)
    if isinstance(value, functools.partial):
        return {**_code(value.func), "args": _plain(value.args), "keywords": _plain(value.keywords)}
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return _plain(value.item())
    return _code(value if hasattr(value, "__qualname__") else type(value))


def _dataloader_or_plain(name: str, value: Any) -> Any:
    if name == "dataloader" and value is not None and not isinstance(value, DataloaderSpec):
        return _code(type(value))  # live: any iterable, also a list of arrays; the digest covers what it delivers
    return _plain(value)


def _code(thing: Any) -> dict[str, Any]:
    """A function or class by name and hash of its source, ``None`` where there is no source to read."""
    try:
        source: str | None = _hash(inspect.getsource(thing).encode())
    except (OSError, TypeError):  # built in, compiled, or typed at a prompt
        source = None
    return {"name": f"{thing.__module__}.{thing.__qualname__}", "source": source}


def _named_code(text: str) -> Any:
    """A string; where it names code in a file (``/abs/file.py:name``), with a hash of that file."""
    file, separator, _ = text.rpartition(":")
    if not separator or not file.endswith(".py"):
        return text
    try:
        return {"name": text, "source": _hash(Path(file).read_bytes())}
    except OSError:
        return {"name": text, "source": None}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _compare(path: str, old: Any, new: Any, found: list[str]) -> None:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{path}.{key}" if path else str(key)
            if key not in new:
                found.append(f"{inner}: was {_show(old[key])}, now not set")
            elif key not in old:
                found.append(f"{inner}: was not set, now {_show(new[key])}")
            else:
                _compare(inner, old[key], new[key], found)
    elif _is_list(old) and _is_list(new) and len(old) == len(new) and any(isinstance(item, Mapping) for item in old):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            _compare(f"{path}[{index}]", before, after, found)
    elif not _equal(old, new):
        found.append(_sentence(path, old, new))


def _sentence(path: str, old: Any, new: Any) -> str:
    if path == "model.digest":
        return f"{path}: was {str(old)[:12]}, now {str(new)[:12]} (the model or the data are not the same)"
    if path.endswith(".source") or path == "source":
        return f"{path.removesuffix('.source')}: its source code has changed"
    return f"{path}: was {_show(old)}, now {_show(new)}"


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new):
        return True
    if _is_list(old) and _is_list(new):
        return len(old) == len(new) and all(map(_equal, old, new))
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _show(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:
        value = value["name"]
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
