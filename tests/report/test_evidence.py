"""What a workspace tells of a run that was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.errors import UsageError
from distune.report.evidence import Evidence
from tests.report.workspaces import killed_run

NAMES = ["conv_a", "conv_b", "conv_c"]


def test_a_killed_run_is_told_from_its_journal(tmp_path: Path) -> None:
    evidence = Evidence.read(killed_run(tmp_path, NAMES, [0.5, 0.55, 0.89], latencies={1: 0.4}))
    result = evidence.result
    assert not evidence.ended
    assert (result.outcome, result.strategy, result.ranks) == ("interrupted", "basic", 3)
    assert "resume" in result.failure
    assert [trial.accuracy for trial in result.trials] == [0.5, 0.55, 0.89]
    assert [trial.label for trial in result.trials] == ["default", "conv_a", "conv_b"]
    assert result.trials[0].latency is not None
    assert result.trials[0].latency.ratio == 0.4
    assert result.criterion is not None
    assert result.criterion.target == pytest.approx(0.891)
    assert result.best is not None
    assert result.best.best_effort
    assert result.best.trial == 3
    assert result.best.fallback_ops == ("conv_b",)


def test_what_ops_gained_is_told_over_what_their_stage_started_from(tmp_path: Path) -> None:
    """The best config so far need not be the base of the fallback: it may be slower than fp32."""
    result = Evidence.read(killed_run(tmp_path, NAMES, [0.5, 0.55, 0.89], best_base=0.7)).result
    assert result.op_impact == {"conv_a": pytest.approx(0.05), "conv_b": pytest.approx(0.39)}
    assert result.best is not None
    assert result.best.fallback_reasons == {"conv_b": "alone in fp32 it improves accuracy by 0.39"}


def test_the_trial_that_met_is_the_best_of_a_killed_run(tmp_path: Path) -> None:
    evidence = Evidence.read(killed_run(tmp_path, NAMES, [0.5, 0.892, 0.899]))
    assert evidence.result.best is not None
    assert (evidence.result.best.trial, evidence.result.best.best_effort) == (2, False)


def test_spans_say_who_did_what(tmp_path: Path) -> None:
    spans = Evidence.read(killed_run(tmp_path, NAMES, [0.5, 0.55], latencies={2: 0.5})).spans
    assert [(span.rank, span.kind, span.label) for span in spans] == [
        (0, "baseline", "fp32"),
        (1, "judge", "trial 1: default"),
        (2, "judge", "trial 2: conv_a"),
        (2, "latency", "trial 2: conv_a"),
    ]


def test_a_result_older_than_the_journal_is_not_believed(tmp_path: Path) -> None:
    """A run that was resumed and killed has a result of its first start beside a longer journal."""
    short = Evidence.read(killed_run(tmp_path / "first", NAMES, [0.5])).result
    killed_run(tmp_path / "second", NAMES, [0.5, 0.55])
    (tmp_path / "second" / "result.json").write_text(short.to_json())
    assert len(Evidence.read(tmp_path / "second").result.trials) == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "not a folder"),
        (lambda path: path.mkdir(), "holds no run"),
        (lambda path: (path.mkdir(), (path / "journal.jsonl").write_text("nonsense\nnonsense\n")), "cannot be read"),
    ],
)
def test_a_folder_that_is_no_workspace_is_refused_in_words(tmp_path: Path, make: object, words: str) -> None:
    path = tmp_path / "workspace"
    make(path)  # type: ignore[operator]
    with pytest.raises(UsageError, match=words):
        Evidence.read(path)
