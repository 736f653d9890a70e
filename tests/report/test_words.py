"""Numbers in words never claim more than was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distune.engine.events import WorkersBusy
from distune.report import words
from distune.report.build import result_of, trial_entry
from distune.report.result import LatencyFigures
from distune.space.op_config import TuningConfig
from distune.trial.messages import Calibrate, Judge
from tests.report.fabricated import NAMES, outcome, trial


@pytest.mark.parametrize(
    ("ratio", "low", "high", "expected"),
    [
        (0.5, 0.48, 0.52, "2x faster than fp32"),
        (0.98, 0.97, 0.99, "slightly faster than fp32"),
        (1.0, 0.9, 1.1, "as fast as fp32"),
        (0.9, 0.7, 1.0, "as fast as fp32"),
        (1.5, 1.4, 1.6, "fp32 is 1.5x faster"),
        (None, None, None, "latency was not measured"),
    ],
)
def test_faster_is_said_only_where_the_interval_leaves_no_doubt(
    ratio: float | None, low: float | None, high: float | None, expected: str
) -> None:
    assert words.speed(LatencyFigures(ratio, low, high, 1.0, 2.0, 1, 1, "node1")) == expected


def test_an_early_verdict_shows_its_bounds() -> None:
    assert words.accuracy(0.5, 0.4, 0.6) == "0.4000..0.6000"
    assert words.accuracy(0.5, 0.5, 0.5) == "0.5000"
    assert words.accuracy(None) == words.accuracy(float("nan")) == "-"


def test_what_ranks_do_is_told_by_rank_and_counted_where_there_are_many() -> None:
    judge, calibrate = Judge(TuningConfig(())), Calibrate(100, 0, 1)
    few = WorkersBusy({0: judge, 1: calibrate, 3: judge}, (0, 1, 2, 3), 0)
    assert words.activity(few) == "ranks 0, 3 judging a trial; rank 1 calibrating; rank 2 idle"
    many = WorkersBusy(dict.fromkeys(range(15), judge), tuple(range(16)), 0)
    assert words.activity(many) == "15 ranks judging a trial; 1 rank idle"


def test_ops_with_one_reason_are_one_row() -> None:
    choice, with_c = "fp32 by the choice of stage x", f"fp32 by the choice of stage x{words.WITH_GROUP}c"
    reasons = {"a": "alone it costs 0.1", "relu": f"alone it costs 0.1{words.WITH_GROUP}a", "b": "not asked for"}
    assert words.kept(reasons) == [("a with 1 op", "alone it costs 0.1"), ("b", "not asked for")]
    many = {f"n{index}": with_c for index in range(90)}  # c itself is quantized
    assert words.kept(many) == [("90 ops: n0, n1, n2, ...", choice)]
    assert words.kept({"c": choice} | many) == [("c with 90 ops", choice)]


def test_units() -> None:
    assert [words.size(value) for value in (None, 12, 340_000, 1_210_000, 7_000_000_000)] == [
        "-",
        "12 B",
        "340 kB",
        "1.21 MB",
        "7 GB",
    ]
    assert [words.duration(value) for value in (0.44, 61, 600, 7200)] == ["0.4 s", "61 s", "10 min", "2.0 h"]


def test_an_interrupted_run_says_that_it_has_found_something() -> None:
    result = result_of(outcome("interrupted"))
    assert "trial 6 meets the criterion already; run the same command again" in words.next_step(result)


def test_a_run_in_which_nothing_could_be_judged_does_not_blame_the_accuracy() -> None:
    result = result_of(outcome("not_met"))
    failed = [replace(trial, verdict="failed", reason="rank 0 on a: out of memory") for trial in result.trials]
    unquantized = replace(result.trials[0], verdict="met", is_fp32=True)
    for outcome_name in ("not_met", "budget_spent"):
        for trials in (failed, [unquantized, *failed]):
            told = replace(result, outcome=outcome_name, trials=tuple(trials))
            sentence = words.verdict_sentence(told)
            assert sentence == "not met: every trial failed, the first of them with: rank 0 on a: out of memory"
            assert words.next_step(told).startswith("mend what the message names, then run again with --fresh")


def test_a_trial_tells_whether_it_is_fp32_itself() -> None:
    fp32 = trial(1, "all recipes", 0.8158, *NAMES)
    assert [entry.is_fp32 for entry in map(trial_entry, (fp32, trial(2, "default", None)))] == [True, False]
