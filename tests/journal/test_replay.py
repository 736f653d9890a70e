"""Work that a journal knows is recognised, and two runs' decisions compare without clocks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distune.errors import JournalError
from distune.journal import Journal
from distune.journal.replay import (
    decode_result,
    encode_result,
    known_results,
    request_key,
    same_decisions,
)
from distune.space.op_config import FP32, OpConfig, TuningConfig
from distune.trial.messages import (
    Accuracy,
    Baseline,
    Calibrate,
    Exported,
    Failure,
    Footprint,
    Judge,
    Latency,
    MeasureFootprint,
    MeasureLatency,
    Probe,
    ProbeAnswer,
)

CONFIG = TuningConfig((("a", FP32), ("b", OpConfig("static"))), (("smooth_quant", True),), 100)
OTHER = CONFIG.with_ops({"b": FP32})
ACCURACY = Accuracy(0.8, 0.8, 0.8, {"top1": 0.8}, 100, verdict=True, size_bytes=12, warnings=("slow",))
BODIES = [
    ACCURACY,
    Accuracy(math.nan, -math.inf, math.inf, {}, 0),
    Latency(0.5, 0.48, 0.52, 1.0, 2.0, 1, 1, 20, "node1", ratios=(0.5, 0.51)),
    Footprint(10, 20),
    ProbeAnswer({"a": 0.25, "b": math.inf}, {"samples": [1, 2]}),
    Failure("crash", "rank 1 on node1: signal 11", "tail"),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_result_comes_back_from_the_journal_as_it_went_in(tmp_path: Path, body: Any) -> None:
    meta = {"rank": 2, "host": "node1", "attempt": 1, "start_s": 0.5}
    with Journal.open(tmp_path / "j", {}) as journal:
        journal.append("result", encode_result("k", body, meta))
    with Journal.open(tmp_path / "j", {}) as journal:
        assert repr(decode_result(journal.records("result")[0].data)) == repr(("k", body, meta))


def test_what_is_not_journalled_is_refused() -> None:
    with pytest.raises(TypeError, match="Exported is not journalled"):
        encode_result("k", Exported({}, {}), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", [{"type": "unheard"}, {"body": {"values": 1}}, {"body": {}}, {"meta": None}])
def test_a_result_of_another_distune_is_an_error_that_says_what_to_do(damage: dict[str, Any]) -> None:
    with pytest.raises(JournalError, match="--fresh"):
        decode_result({**encode_result("k", ACCURACY, {}), **damage})


def test_keys_tell_work_apart_and_nothing_else() -> None:
    bodies = [
        Baseline(),
        Judge(CONFIG),
        Judge(OTHER),
        Judge(CONFIG, "verdict"),
        MeasureLatency(CONFIG),
        MeasureFootprint(CONFIG),
        Calibrate(100, 0, 1),
        Calibrate(100, 0, 1, (("smooth_quant", True),)),
        Probe("op_mse", CONFIG, ("a",)),
        Probe("op_mse", CONFIG, ("b",)),
        Probe("hessian_trace", CONFIG, ("b",)),
        Probe("op_mse", CONFIG, ("b",), {"samples": 8}),
        Probe("op_mse", CONFIG, ("b",), shard=1, shards=2),
    ]
    assert len({request_key(body) for body in bodies}) == len(bodies)
    assert request_key(Baseline()) == "baseline"
    assert request_key(Judge(CONFIG, "exact", 0.7)) == f"judge:{CONFIG.hash}:exact"
    ranked = Judge(CONFIG, "ranking", 0.7, base="b", decisive="samples")
    assert request_key(ranked) == f"judge:{CONFIG.hash}:ranking:of b"
    same = replace(CONFIG, recipes=tuple(CONFIG.recipes))
    assert request_key(MeasureLatency(same)) == request_key(MeasureLatency(CONFIG))


def test_the_last_result_of_a_key_counts_and_a_lost_rank_says_nothing(tmp_path: Path) -> None:
    key = request_key(Judge(CONFIG))
    with Journal.open(tmp_path / "j", {}) as journal:
        for key_, body in [
            (key, Failure("deadline", "slow")),
            (key, ACCURACY),
            ("latency:x", Failure("lost", "rank 3 is gone")),
        ]:
            journal.append("result", encode_result(key_, body, {}))
        known = known_results(journal)
    assert known.keys() == {key}
    assert known[key].body == ACCURACY


def decide(tmp_path: Path, name: str, *data: dict[str, Any]) -> Journal:
    journal = Journal.open(tmp_path / name, {})
    journal.append("result", encode_result("k" + name, ACCURACY, {}))
    for item in data:
        journal.append("decision", item)
    journal.close()
    return journal


def test_decisions_compare_without_clocks_latency_rank_and_host(tmp_path: Path) -> None:
    one = {
        "stage": "default",
        "trial": 1,
        "accuracy": math.nan,
        "rank": 0,
        "end_s": 1.0,
        "best": {"ratio": 0.5, "id": 1},
    }
    two = {**one, "rank": 3, "host": "node2", "end_s": 7.0, "best": {"ratio": 0.6, "id": 1}}
    assert same_decisions(decide(tmp_path, "a", one), decide(tmp_path, "b", two)) == []


def test_other_decisions_are_told_in_words(tmp_path: Path) -> None:
    one = {"stage": "fallback", "trial": 2, "label": "conv1", "verdict": "met"}
    found = same_decisions(
        decide(tmp_path, "a", one), decide(tmp_path, "b", {**one, "verdict": "not_met"}, {"stage": "x"})
    )
    assert found == [
        "decision 1 (fallback, conv1): verdict is 'met' in the first and 'not_met' in the second",
        "the first run took 1 decisions, the second 2",
    ]
