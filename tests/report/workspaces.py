"""Journals of runs that never ran, written by the real journal, for what is told of a run after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distune.config.job import ModelSpec, TuningJob
from distune.engine.decisions import DecisionLog
from distune.journal.journal import Journal
from distune.journal.replay import encode_result, request_key
from distune.journal.signature import signature
from distune.space.op_config import FP32, OpConfig, TensorConfig, TuningConfig
from distune.trial.messages import Accuracy, Baseline, Judge, Latency, MeasureLatency

INT8 = OpConfig("static", TensorConfig("uint8", "asym"), TensorConfig("int8", "sym", "per_channel"))
JOB = TuningJob(ModelSpec("onnxruntime", "model.onnx", "fabricated"))


def config(names: list[str], *fp32: int) -> TuningConfig:
    """Int8 everywhere but in the ops with the given positions."""
    return TuningConfig(tuple((name, FP32 if i in fp32 else INT8) for i, name in enumerate(names)), sampling_size=10)


def killed_run(
    folder: Path,
    names: list[str],
    accuracies: list[float],
    *,
    latencies: dict[int, float] | None = None,
    low: dict[int, float] | None = None,
    best_base: float | None = None,
) -> Path:
    """A workspace whose run was killed in its ranking stage: a journal, and no result.

    Args:
        names: Op names.
        accuracies: Of the default config, then of configs with op 0, op 1, ... (and pairs after that) in fp32; fp32
            has 0.9. Sizes are 1000 bytes for the default and 10 more for every trial after it.
        latencies: Ratio by trial id, with an interval of 0.01 to either side.
        low: Lower bound of the accuracy by trial id, for an early verdict; the accuracy is the upper one.
        best_base: Accuracy of a config that no op's fallback starts from, judged last of all: weights per tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Journal.open(folder / "journal.jsonl", signature(JOB, "digest")) as journal:
        decisions = DecisionLog(journal)
        journal.append("note", {"kind": "ops", "ops": [[name, "Conv", name] for name in names]})
        _result(journal, Baseline(), _accuracy(0.9), 0.0, 1.0)
        for index, accuracy in enumerate(accuracies):
            label, chosen = _candidate(names, index)
            body = _accuracy(accuracy, (low or {}).get(index + 1), 1000 + 10 * index)
            _result(journal, Judge(chosen), body, 1.0 + index, 1.9 + index)
            stage = "default" if index == 0 else "instance-wise fallback to fp32"
            decisions.add(
                kind="trial",
                stage=stage,
                index=max(0, index - 1),
                label=label,
                trial=index + 1,
                config_hash=chosen.hash,
                verdict="met" if accuracy >= 0.891 else "not_met",
                accuracy=accuracy,
                again=False,
                config=chosen.to_compact(),
            )
            if index == 0:
                decisions.add(kind="stage", stage=stage, judged=1, base=chosen.hash, order=[], stopped=None)
            ratio = (latencies or {}).get(index + 1)
            if ratio is not None:
                measured = Latency(ratio, ratio - 0.01, ratio + 0.01, ratio, 1.0, 1, 1, 9, "node1")
                _result(journal, MeasureLatency(chosen), measured, 1.9 + index, 2.0 + index)
            if index == 0 and best_base is not None:
                _rival(journal, decisions, names, len(accuracies) + 1, best_base)
    return folder


def _rival(journal: Journal, decisions: DecisionLog, names: list[str], number: int, accuracy: float) -> None:
    """A trial of its own stage, which becomes the base that the journal names."""
    stage, per_tensor = "op-type-wise", replace(INT8, weight=TensorConfig("int8"))
    chosen = TuningConfig(tuple((name, per_tensor) for name in names), sampling_size=10)
    _result(journal, Judge(chosen), _accuracy(accuracy, None, 900), 1.9, 2.0)
    told = {"stage": stage, "trial": number, "config_hash": chosen.hash, "config": chosen.to_compact()}
    decisions.add(kind="trial", index=0, label="per tensor", verdict="not_met", accuracy=accuracy, again=False, **told)
    decisions.add(kind="stage", stage=stage, judged=1, base=chosen.hash, order=[], stopped=None)


def _candidate(names: list[str], index: int) -> tuple[str, TuningConfig]:
    if index == 0:
        return "default", config(names)
    first, second = (index - 1) % len(names), (index - 1) // len(names)
    pair = () if second == 0 else ((first + second) % len(names),)
    return names[first], config(names, first, *pair)


def _accuracy(value: float, low: float | None = None, size: int | None = None) -> Accuracy:
    return Accuracy(value, value if low is None else low, value, {"topk": value}, 100, size_bytes=size)


def _result(
    journal: Journal, body: Baseline | Judge | MeasureLatency, answer: Accuracy | Latency, start: float, end: float
) -> None:
    meta = {"rank": int(start) % 3, "host": "node1", "start_s": start, "end_s": end, "attempts": 1}
    journal.append("result", encode_result(request_key(body), answer, meta))
