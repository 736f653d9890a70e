"""What a workspace holds of a run: its result, its journal, and what the two say together.

Everything that is told of a run after it (the HTML report, ``trials.csv``, what-if questions, comparisons) is made from
an ``Evidence``. It needs neither the model nor the data, and reads a run that was killed as well as a finished one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from distune.errors import JournalError, UsageError
from distune.journal.journal import read_records
from distune.journal.record import Record
from distune.journal.replay import decisions, decode_result
from distune.report.rebuilt import rebuilt_result
from distune.report.result import DamagedResultError, RunResult
from distune.space.op_config import TuningConfig
from distune.trial.messages import Failure, ProbeAnswer

SpanKind = Literal["baseline", "judge", "latency", "footprint", "probe", "lost", "failed"]

_KINDS: Mapping[str, SpanKind] = {
    "baseline": "baseline",
    "latency": "latency",
    "footprint": "footprint",
    "probe": "probe",
    "diagnose": "probe",
}
"""Kind of a span by the first word of its request's key; what is not here judges a model."""


@dataclass(frozen=True)
class OpFacts:
    """One op of the tuning space.

    Attributes:
        group: The group that it falls back with.
        has_weight: Ops with weights are those that results count; older journals do not tell, and count all.
    """

    name: str
    op_type: str
    group: str
    has_weight: bool = True


@dataclass(frozen=True)
class Span:
    """What a rank did in a stretch of time, in seconds since the run began."""

    rank: int
    kind: SpanKind
    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True)
class Evidence:
    """A run as its workspace tells it.

    Attributes:
        path: The workspace.
        result: What ``result.json`` says; made from the journal where the run never came to write one, wrote it before
            it was resumed and killed, or the file is damaged.
        ended: The result is the run's own, not made from the journal.
        settings: What the run was started with: the journal's header.
        ops: Ops of the tuning space, in graph order.
        configs: Tuning config of each judged trial, by id.
        spans: What the ranks did, in the order of the journal.
        diagnosis: Tensors of ops beside fp32's, by op, in the form of ``backends.diagnosis``; empty where the run
            looked at none.
        damage: What is wrong with ``result.json`` and what is told instead; empty where nothing is wrong.
    """

    path: Path
    result: RunResult
    ended: bool
    settings: Mapping[str, Any]
    ops: tuple[OpFacts, ...] = ()
    configs: Mapping[int, TuningConfig] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    diagnosis: Mapping[str, Any] = field(default_factory=dict)
    damage: str = ""

    @classmethod
    def read(cls, path: Path) -> Evidence:
        """The evidence in the workspace ``path``.

        Raises:
            UsageError: The folder is not a workspace, or its files are damaged or of another version; says which.
        """
        journal, written = path / "journal.jsonl", path / "result.json"
        if not path.is_dir():
            raise UsageError(f"{path} is not a folder; give the workspace of a run (the one with result.json)")
        if not journal.is_file():
            if written.is_file():
                return cls(path, _alone(written), True, {})
            raise UsageError(f"{path} holds no run: neither journal.jsonl nor result.json is there")
        try:
            records = read_records(journal)
            if not records:
                raise JournalError("not one record in it is whole")
            held = decisions(records)
            ops = _ops(records)
            configs = _configs(held, [op.name for op in ops])
        except JournalError as error:
            raise UsageError(f"{journal} cannot be read: {error}") from error
        result, ended, damage = _result(written, records, held, ops, configs)
        settings = {key: value for record in records[:1] for key, value in record.data.items()}
        return cls(path, result, ended, settings, ops, configs, _spans(records), _diagnosis(records), damage)


def _written(path: Path) -> RunResult:
    """What ``result.json`` says.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return RunResult.from_json(path.read_bytes())
    except DamagedResultError as error:
        raise DamagedResultError(f"{path} is damaged: {error}") from error
    except UsageError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def _alone(path: Path) -> RunResult:
    try:
        return _written(path)
    except DamagedResultError as error:
        raise DamagedResultError(
            f"{error}; there is no journal.jsonl beside it to tell the run from: copy the workspace again, or run again"
        ) from error


def _result(
    written: Path,
    records: Sequence[Record],
    held: Sequence[Mapping[str, Any]],
    ops: Sequence[OpFacts],
    configs: Mapping[int, TuningConfig],
) -> tuple[RunResult, bool, str]:
    """The run's own result where it knows of every trial of the journal, else one made from the journal.

    A start that failed before it judged anything is believed: its failure is the news.

    Returns:
        The result, whether it is the run's own, and what is wrong with the run's own file.
    """
    damage = ""
    if written.is_file():
        try:
            result = _written(written)
        except DamagedResultError as error:
            damage = (
                f"{error}. What is told is what journal.jsonl holds; run the same command again to have the result "
                "written anew"
            )
        else:
            if len(result.trials) >= len(configs) or result.outcome == "failed":
                return result, True, ""
    groups = {op.name: op.group for op in ops}
    counted = frozenset(op.name for op in ops if op.has_weight)
    rebuilt = rebuilt_result(records, held, groups, counted, configs)
    return replace(rebuilt, warnings=(damage,)) if damage else rebuilt, False, damage


def _ops(records: Sequence[Record]) -> tuple[OpFacts, ...]:
    for record in records:
        if record.kind == "note" and record.data.get("kind") == "ops":
            return tuple(OpFacts(*entry) for entry in record.data["ops"])
    return ()


def _configs(held: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[int, TuningConfig]:
    """Configs by trial id. A trial that was known before is journalled without its config, which came earlier."""
    configs: dict[int, TuningConfig] = {}
    for decision in held:
        if decision.get("kind") == "trial" and decision.get("config") is not None:
            try:
                configs[int(decision["trial"])] = TuningConfig.from_compact(decision["config"], names)
            except (KeyError, TypeError, IndexError, ValueError) as error:
                raise JournalError(
                    f"the tuning config of trial {decision.get('trial')} is damaged ({error!r})"
                ) from error
    return configs


def _spans(records: Sequence[Record]) -> tuple[Span, ...]:
    labels = {
        str(record.data.get("config_hash")): f"trial {record.data['trial']}"
        + (f": {record.data['label']}" if record.data.get("label") else "")
        for record in records
        if record.kind == "decision" and record.data.get("kind") == "trial"
    }
    spans: list[Span] = []
    for record in records:
        if record.kind != "result":
            continue
        key, body, meta = decode_result(record.data)
        rank, start, end = meta.get("rank"), meta.get("start_s"), meta.get("end_s")
        what, _, rest = key.partition(":")
        if rank is None or start is None or end is None:
            continue
        kind = _KINDS.get(what, "judge")
        if isinstance(body, Failure):
            kind = "lost" if body.kind == "lost" else "failed"
        named = labels.get(rest.partition(":")[0], rest.partition(":")[0] if what == "probe" else "")
        spans.append(Span(int(rank), kind, float(start), float(end), named or ("fp32" if what == "baseline" else what)))
    return tuple(spans)


def _diagnosis(records: Sequence[Record]) -> Mapping[str, Any]:
    for record in reversed(records):
        if record.kind == "result" and str(record.data.get("key", "")).startswith("diagnose:"):
            _, body, _ = decode_result(record.data)
            if isinstance(body, ProbeAnswer):
                return body.data
    return {}


__all__ = ["Evidence", "OpFacts", "Span"]
