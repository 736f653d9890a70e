"""Two runs side by side: settings that differ, figures, decisions, and ops that ended up in another precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distune.journal.journal import read_records
from distune.journal.replay import same_decisions
from distune.journal.signature import differences
from distune.report import words
from distune.report.evidence import Evidence
from distune.report.html.data import described
from distune.report.result import RunResult


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common and what not.

    Attributes:
        figures: ``(what, first run, second run)``, in words.
        settings: What was set differently, one sentence each; empty where both runs had the same job.
        decisions: Where the two decided differently, one sentence each.
        ops: ``(op, first run, second run)`` for every op whose config differs between the two best models.
    """

    figures: tuple[tuple[str, str, str], ...]
    settings: tuple[str, ...]
    decisions: tuple[str, ...]
    ops: tuple[tuple[str, str, str], ...]


def compare(first: Evidence, second: Evidence) -> Comparison:
    """Compare two runs."""
    figures = tuple((name, tell(first.result), tell(second.result)) for name, tell in _FIGURES)
    return Comparison(figures, _settings(first, second), _decisions(first, second), _ops(first, second))


_FIGURES: tuple[tuple[str, Callable[[RunResult], str]], ...] = (
    ("outcome", lambda r: r.outcome.replace("_", " ")),
    ("strategy", lambda r: r.strategy),
    ("fp32 accuracy", lambda r: words.accuracy(r.baseline.accuracy if r.baseline else None)),
    ("target", lambda r: words.accuracy(r.criterion.target if r.criterion else None)),
    ("accuracy", lambda r: words.accuracy(r.best.accuracy if r.best else None)),
    ("latency / fp32", lambda r: _interval(r)),
    ("size", lambda r: words.size(r.best.size_bytes if r.best else None)),
    ("ops quantized", lambda r: f"{r.best.ops_quantized} of {r.best.ops_total}" if r.best else "-"),
    ("trials", lambda r: str(len(r.trials))),
    ("time", lambda r: words.duration(r.timing.total_s)),
    ("ranks", lambda r: str(r.ranks)),
    ("hosts", lambda r: ", ".join(host.name for host in r.hosts) or "-"),
    ("versions", lambda r: ", ".join(f"{name} {version}" for name, version in r.versions.items()) or "-"),
)


def _interval(result: RunResult) -> str:
    latency = None if result.best is None else result.best.latency
    if latency is None or latency.ratio is None:
        return "-"
    return f"{latency.ratio:.3f} [{latency.ci_low:.3f}, {latency.ci_high:.3f}]"


def _settings(first: Evidence, second: Evidence) -> tuple[str, ...]:
    if not first.settings or not second.settings:
        return ()
    return tuple(differences(_job(first), _job(second)))


def _job(evidence: Evidence) -> dict[str, object]:
    return {key: value for key, value in evidence.settings.items() if key != "distune_version"}


def _decisions(first: Evidence, second: Evidence) -> tuple[str, ...]:
    journals = [evidence.path / "journal.jsonl" for evidence in (first, second)]
    if not all(journal.is_file() for journal in journals):
        return ()
    return tuple(same_decisions(*(read_records(journal) for journal in journals)))


def _ops(first: Evidence, second: Evidence) -> tuple[tuple[str, str, str], ...]:
    described_ops = [_best_ops(evidence) for evidence in (first, second)]
    names = dict.fromkeys([*described_ops[0], *described_ops[1]])
    pairs = [(name, described_ops[0].get(name, "-"), described_ops[1].get(name, "-")) for name in names]
    return tuple(pair for pair in pairs if pair[1] != pair[2])


def _best_ops(evidence: Evidence) -> dict[str, str]:
    best = evidence.result.best
    config = None if best is None else evidence.configs.get(best.trial)
    return {} if config is None else {name: described(option) for name, option in config.ops}


__all__ = ["Comparison", "compare"]
