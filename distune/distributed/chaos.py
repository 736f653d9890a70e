"""Misfortune on purpose (``DISTUNE_CHAOS``): children that crash or hang, ranks that die, trials that take long.

For those who want to see a run survive before they trust it with a night: ``DISTUNE_CHAOS=crash:0.1,hang:0.05,
kill_rank:0.02,slow:0.1,seed:7``. What befalls a piece of work is decided by the seed, by what the work is and by the
attempt, never by rank or time: every start of the same run meets the same misfortune, on any number of ranks.

It strikes first attempts only, so that the second one succeeds and the run comes to the same winner as without;
``attempts:all`` strikes all of them, and then configs are quarantined.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from distune.config.job import TuningJob
from distune.errors import UsageError
from distune.journal.replay import request_key
from distune.trial.messages import Inspect, Request, Result

VARIABLE = "DISTUNE_CHAOS"

Kind = Literal["crash", "hang", "kill_rank", "slow"]

KINDS: tuple[Kind, ...] = ("crash", "hang", "slow", "kill_rank")
"""In the order in which one draw decides between them: without the last, the others strike as they did."""

_KEYS = (*KINDS, "seed", "attempts")
_EXAMPLE = f"{VARIABLE}=crash:0.1,hang:0.05,kill_rank:0.02,slow:0.1,seed:7"
SLOW_S = 2.0
"""A slow trial takes up to so many seconds more."""

_DEATHS = ("segfault", "killed", "exit", "abort")


@dataclass(frozen=True)
class Fate:
    """What befalls one attempt.

    Attributes:
        kind: One of ``KINDS``.
        moment: In [0, 1): how far the work gets before a child or a rank dies, and how slow a slow one is.
        death: In which way a child dies.
    """

    kind: Kind
    moment: float
    death: str = "segfault"

    @property
    def late(self) -> bool:
        """The work is done, and only its answer is lost."""
        return self.moment >= 0.5


@dataclass(frozen=True)
class Chaos:
    """How much of what goes wrong; see the module's description.

    Attributes:
        crash: Share of the work whose child process dies (segmentation fault, SIGKILL, ``exit``, ``abort``).
        hang: Share of the work that never ends; only work that has a deadline.
        kill_rank: Share of the work whose rank is killed; rank 0 never is, since the master lives there.
        slow: Share of the work that takes longer.
        seed: Another seed strikes other work.
        attempts: Strike ``first`` attempts only, or ``all``.
    """

    crash: float = 0.0
    hang: float = 0.0
    kill_rank: float = 0.0
    slow: float = 0.0
    seed: int = 0
    attempts: Literal["first", "all"] = "first"

    @classmethod
    def parse(cls, text: str) -> Chaos:
        """What ``DISTUNE_CHAOS`` says.

        Raises:
            UsageError: A key or a value is none, or the shares add up to more than 1; all problems at once.
        """
        values: dict[str, float] = {}
        seed, attempts = 0, "first"
        problems: list[str] = []
        seen: set[str] = set()
        for entry in filter(None, (part.strip() for part in text.split(","))):
            key, separator, value = (part.strip() for part in entry.partition(":"))
            if key in seen:
                problems.append(f"{key!r} is there twice")
            seen.add(key)
            if key not in _KEYS:
                near = get_close_matches(key, _KEYS, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(_KEYS)}"
                problems.append(f"unknown key {key!r}; {hint}")
            elif not separator:
                problems.append(f"{key!r} has no value: write {key}:VALUE")
            elif key == "seed":
                if value.isdigit():
                    seed = int(value)
                else:
                    problems.append(f"seed: expected a whole number, got {value!r}")
            elif key == "attempts":
                if value in ("first", "all"):
                    attempts = value
                else:
                    problems.append(f"attempts: expected 'first' or 'all', got {value!r}")
            elif (share := _share(value)) is None:
                problems.append(f"{key}: expected a share from 0 to 1, got {value!r}")
            else:
                values[key] = share
        if sum(values.values()) > 1.0:
            problems.append(f"the shares add up to {sum(values.values()):g}, more than 1")
        if not problems and not values:
            problems.append(f"nothing is to go wrong: give one of {', '.join(KINDS)}")
        if problems:
            raise UsageError(f"{VARIABLE}={text}: {'; '.join(problems)} (e.g. {_EXAMPLE})")
        return cls(**values, seed=seed, attempts="all" if attempts == "all" else "first")

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Chaos | None:
        """What the environment asks for; ``None`` where it asks for none.

        Raises:
            UsageError: See ``parse``.
        """
        text = environment.get(VARIABLE, "").strip()
        return cls.parse(text) if text else None

    @classmethod
    def of_job(cls, job: TuningJob, environment: Mapping[str, str]) -> Chaos | None:
        """What the environment asks for, for the transport of ``job``.

        Raises:
            UsageError: See ``parse``; or trials do not run in processes of their own.
        """
        chaos = cls.of_environment(environment)
        if chaos is not None and job.isolation == "none":
            raise UsageError(
                f"{VARIABLE} ends the processes in which trials run, and with isolation: none those are the ranks "
                "themselves: leave isolation out (it is process by default)"
            )
        return chaos

    def announced(self, ranks_may_go: bool) -> tuple[Chaos, tuple[str, ...]]:
        """What can be done of it, and what to tell the user.

        Args:
            ranks_may_go: The run survives the loss of a rank.
        """
        warnings = [f"{VARIABLE} is set: work of this run fails on purpose"]
        if not self.kill_rank or ranks_may_go:
            return self, tuple(warnings)
        warnings.append(
            f"{VARIABLE}: kill_rank is left out, since the job would end with the rank; it needs several ranks under "
            "mpirun --with-ft ulfm (--np gives it where Open MPI can)"
        )
        return replace(self, kill_rank=0.0), tuple(warnings)

    def fate(self, request: Request) -> Fate | None:
        """What befalls this attempt, the same wherever and whenever it is asked; mostly nothing.

        ``Inspect`` is spared: every rank does it at the start, and all of them would be struck at once.
        """
        if isinstance(request.body, Inspect) or (request.attempt > 1 and self.attempts == "first"):
            return None
        draw, moment, way = _draws(f"{self.seed}:{request_key(request.body)}:{request.attempt}")
        kind: Kind | None = None
        for candidate in KINDS:
            share: float = getattr(self, candidate)
            if draw < share:
                kind = candidate
                break
            draw -= share
        if kind is None or (kind == "hang" and request.deadline_s is None):  # nobody would ever notice
            return None
        return Fate(kind, moment, _DEATHS[int(way * len(_DEATHS))])


def suffer(fate: Fate | None, work: Callable[[], Result]) -> Result:
    """Do ``work`` in a child process as ``fate`` has it; does not return where the child dies or hangs.

    The loss of a rank is not the child's business: its agent sees to that.
    """
    if fate is None or fate.kind == "kill_rank":
        return work()
    print(f"{VARIABLE}: {fate.kind}{f' ({fate.death})' if fate.kind == 'crash' else ''}", file=sys.stderr, flush=True)
    if fate.kind == "slow":
        time.sleep(fate.moment * SLOW_S)
        return work()
    if fate.late:
        work()
    if fate.kind == "crash":
        _die(fate.death)
    while True:
        time.sleep(3600.0)


def _die(death: str) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # nobody wants the core of a death on purpose
    if death == "exit":
        os._exit(3)
    number = {"segfault": signal.SIGSEGV, "abort": signal.SIGABRT}.get(death, signal.SIGKILL)
    os.kill(os.getpid(), number)


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 else None


def _draws(key: str) -> tuple[float, float, float]:
    """Three numbers in [0, 1) that ``key`` decides."""
    digest = hashlib.sha256(key.encode()).digest()
    first, second, third = (int.from_bytes(digest[start : start + 6], "big") / 2**48 for start in (0, 6, 12))
    return first, second, third
