"""What a person reads while a run goes on and at its end."""

from __future__ import annotations

import io
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from distune.engine.events import WorkersBusy
from distune.engine.outcome import OutcomeName
from distune.report.build import result_of
from distune.report.console import ConsoleListener
from tests.report.fabricated import JOB, outcome, story


def play(name: OutcomeName = "met", *, quiet: bool = False, terminal: bool = False) -> str:
    stream = io.StringIO()
    with ConsoleListener(quiet=quiet, stream=stream, terminal=terminal) as console:
        for event in story(name):
            console.on(event)
        console.show(result_of(outcome(name)), Path(JOB.workspace))
    return stream.getvalue()


def test_a_log_file_gets_one_plain_line_a_decision() -> None:
    lines = play().splitlines()
    told = "accuracy 0.7741 (target 0.8076)  not met  conv1 back to fp32: +67.3 points"
    assert f"instance-wise 1/4  {told}" in lines
    assert "accumulated 1  accuracy 0.8123 (target 0.8076)  met  conv2_dw back to fp32: +3.8 points" in lines
    assert any("3/4  failed: rank 2 on node2: signal 11" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_warnings_say_where_they_come_from() -> None:
    assert "warning (rank 3 on node2): worker lost" in play()


def test_quiet_leaves_warnings_and_the_final_table() -> None:
    text = play(quiet=True)
    assert "instance-wise" not in text
    assert "warning: Softmax" in text
    assert "1.9x faster than fp32" in text


def test_a_terminal_keeps_the_stages_and_not_every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", play(terminal=True))
    assert "about 6.5 s left" in text
    assert "budget: 86 trials, 2 min" in text
    assert "ranks 0, 1, 2 judging a trial; rank 3 idle" in text
    assert "instance-wise: none met, best so far 0.7741" in text


def test_what_moves_is_whole_behind_a_pipe_that_hands_on_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """``mpirun`` keeps back what stands behind the last newline."""
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    with ConsoleListener(stream=stream, terminal_size=(100, 40)) as console:
        for event in itertools.islice(story(), 5):
            console.on(event)
        console.on(WorkersBusy({}, (0, 1), 0))
        arrived = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", stream.getvalue().rpartition("\n")[0])
    assert arrived.endswith("ranks 0, 1 idle")


@pytest.mark.parametrize("name", get_args(OutcomeName))
def test_every_ending_says_how_to_go_on(name: OutcomeName) -> None:
    text = play(name)
    assert "next" in text
    assert "/runs/one/result.json" in text


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "instance-wise 1/4  accuracy 0.7741" in play(terminal=True)


def test_the_table_shows_the_figures_and_why_ops_are_kept() -> None:
    text = play()
    assert "loss 0.0035, 0.0082 is allowed" in text
    assert "1.9x faster than fp32 (0.527 [0.519, 0.536])" in text
    assert "28% of fp32" in text
    assert "2 of 4" in text
    assert "improves accuracy by 0.6729" in text


def test_standard_output_stays_clean() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.report.fabricated"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout == ""
    assert "met: the accuracy is kept" in done.stderr


def test_the_room_imports_nothing_heavy() -> None:
    program = (
        "import sys, distune.report.console, distune.report.build, distune.journal.replay, distune.journal.signature\n"
        "print([name for name in ('onnxruntime', 'onnx', 'torch', 'mpi4py', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
