"""What launcher and rank 0 tell each other past ``mpirun``."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from distune.distributed.rank0_line import LauncherEnd, RankEnd, launcher_terminal


@pytest.fixture
def launcher() -> Iterator[LauncherEnd]:
    end = LauncherEnd()
    yield end
    end.close()


@pytest.fixture
def seen() -> Iterator[list[int]]:
    """USR1 that this process, as rank 0, has got."""
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    yield got
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_is_held_back_until_rank_0_listens(launcher: LauncherEnd, seen: list[int]) -> None:
    launcher.interrupt(signal.SIGUSR1)
    assert seen == []
    rank = RankEnd(launcher.environment)
    rank.listening()
    assert launcher.receive()
    assert seen == [signal.SIGUSR1]
    launcher.interrupt(signal.SIGUSR1)
    assert len(seen) == 2


def test_nobody_else_is_signalled_once_rank_0_has_gone(launcher: LauncherEnd, seen: list[int]) -> None:
    rank = RankEnd(launcher.environment)
    rank.listening()
    rank.exit(75)
    assert launcher.receive()
    assert launcher.exit_code == 75
    rank.close()
    assert not launcher.receive()
    launcher.interrupt(signal.SIGUSR1)
    assert seen == []


def test_a_rank_of_another_launcher_tells_nobody(launcher: LauncherEnd) -> None:
    gone = launcher.environment
    for environment in ({}, {name: f"{value}/gone" for name, value in gone.items()}):
        rank = RankEnd(environment)
        rank.listening()
        rank.exit(0)


def test_the_terminal_of_the_launcher_is_known_to_rank_0() -> None:
    assert launcher_terminal({"DISTUNE_LAUNCHER_TERMINAL": "132x43"}) == (132, 43)
    assert launcher_terminal({}) is None
