"""What a workspace tells of a run that was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.cli.main import main
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


def test_half_a_result_is_told_from_the_journal_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Evidence.read(killed_run(tmp_path, NAMES, [0.5, 0.55])).result.to_json()
    (tmp_path / "result.json").write_text(whole[: len(whole) // 2])
    assert main(["report", str(tmp_path), "--tolerance", "0.5"]) == 0
    told = capsys.readouterr().err
    assert f"{tmp_path / 'result.json'} is damaged" in told
    assert "What is told is what journal.jsonl holds; run the same command again" in told
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 0
    assert main(["inspect", str(tmp_path)]) == 2  # this run kept no tensors
    assert capsys.readouterr().err.count("is damaged") == 3
    evidence = Evidence.read(tmp_path)
    assert (len(evidence.result.trials), evidence.ended) == (2, False)
    assert evidence.result.warnings == (evidence.damage,)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 1}'])
def test_half_a_result_without_a_journal_is_refused_with_its_path(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UsageError, match=r"result\.json is damaged: .*no journal\.jsonl beside it"):
        Evidence.read(tmp_path)


def test_a_result_of_a_later_version_is_not_taken_for_damage(tmp_path: Path) -> None:
    killed_run(tmp_path, NAMES, [0.5])
    (tmp_path / "result.json").write_text('{"schema_version": 99, "distune_version": "9.0"}')
    with pytest.raises(UsageError, match=r"result\.json cannot be read: .*read it with distune 9\.0"):
        Evidence.read(tmp_path)


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
