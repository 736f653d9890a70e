"""Questions to a journal: another tolerance, another objective, and what the journal cannot know."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.errors import UsageError
from distune.report.evidence import Evidence
from distune.report.whatif import Question, ask
from tests.report.workspaces import killed_run

NAMES = ["conv_a", "conv_b", "conv_c"]


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    """fp32 has 0.9, so that 1% asks for 0.891, 5% for 0.855 and 50% for 0.45."""
    return Evidence.read(killed_run(tmp_path, NAMES, [0.5, 0.86, 0.87, 0.895], latencies={2: 0.7, 3: 0.5, 4: 0.9}))


def test_a_looser_tolerance_has_the_fastest_of_those_that_meet_it(evidence: Evidence) -> None:
    answer = ask(evidence, Question(tolerance=0.05))
    assert answer.target == pytest.approx(0.855)
    assert answer.meeting == (2, 3, 4)
    assert answer.winner == 3
    assert answer.first == 2
    assert any("first success would have ended with trial 2" in sentence for sentence in answer.sentences)


def test_a_tighter_tolerance_may_leave_none(evidence: Evidence) -> None:
    answer = ask(evidence, Question(tolerance=0.001))
    assert answer.winner is None
    assert "none of the 4 judged trials surely meets it" in answer.sentences[1]


def test_the_smallest_model_wins_by_size(evidence: Evidence) -> None:
    assert ask(evidence, Question(tolerance=0.5, objective="modelsize")).winner == 1


def test_what_was_not_measured_is_said(evidence: Evidence) -> None:
    answer = ask(evidence, Question(tolerance=0.5))
    assert answer.unmeasured == (1,)
    assert any("trial 1 would meet it too, but performance was not measured" in s for s in answer.sentences)


def test_an_early_verdict_may_leave_the_answer_open(tmp_path: Path) -> None:
    workspace = killed_run(tmp_path, NAMES, [0.86, 0.895], low={1: 0.6}, latencies={2: 0.9})
    answer = ask(Evidence.read(workspace), Question(tolerance=0.05))
    assert answer.undecided == (1,)
    assert answer.winner == 2
    assert any("cannot know of trial 1" in sentence for sentence in answer.sentences)


@pytest.mark.parametrize(
    ("question", "words"),
    [(Question(tolerance=-0.1), "0 or more"), (Question(objective="speed"), "did you mean 'performance'")],
)
def test_wrong_questions_are_refused(evidence: Evidence, question: Question, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ask(evidence, question)
