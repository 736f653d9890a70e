"""One tuner on one case, in the environment of that tuner; or the common judge. Started by ``peers.py`` alone.

Only the judge imports distune. Every tuner gets the same calibration feeds, the same evaluation and the
same criterion (relative 1%), and one core.

    python peers_worker.py inc|nncf|judge CASE --out FOLDER [--strategy basic] [--model FILE ...]

Seconds are given twice, of the wall clock and of the processor: on a machine that others use too only the second tell
what the work costs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

ASSETS = Path(os.environ["DISTUNE_ASSETS"])
LIMITS = {"resnet20": None, "minilm": None, "mobilenetv1": 1000}
LOSS = 0.01
LATENCY_SECONDS = 6.0

Feed = dict[str, Any]
Predict = Callable[[Feed], Any]


class Case:
    """Model, data and evaluation, with a count of what was evaluated."""

    def __init__(self, name: str) -> None:
        sys.path.insert(0, str(ASSETS))
        import asset_tasks  # type: ignore[import-not-found,unused-ignore]

        self.name = name
        self.task = asset_tasks.task(name)
        self.limit = LIMITS[name]
        self.path = Path(self.task.onnx)
        feeds = self.task.calibration()
        self.calibration: list[Feed] = feeds[::2] if name == "minilm" else feeds  # first sentences, as distune has
        self.rows = 0
        self.evaluations = 0

    def evaluate(self, predict: Predict) -> float:
        """Score on the complete evaluation set."""
        self.evaluations += 1
        return float(self.task.evaluate(predict, limit=self.limit))


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), _processor_seconds()

    def spent(self) -> dict[str, float]:
        """By the wall clock, and of the processor, child processes included."""
        return {
            "seconds": time.perf_counter() - self._wall,
            "processor_s": _processor_seconds() - self._processor,
        }


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def session(model: bytes, disabled: Sequence[str] = ()) -> ort.InferenceSession:
    """One thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    more = {"disabled_optimizers": list(disabled)} if disabled else {}
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], **more)


def predictor(model: onnx.ModelProto | bytes, disabled: Sequence[str] = ()) -> Predict:
    """Feed to first output."""
    run = session(model if isinstance(model, bytes) else model.SerializeToString(), disabled).run
    return lambda feed: run(None, feed)[0]


# ------------------------------------------------------------------------------------------------------------ tuners


def tune_inc(case: Case, out: Path, strategy: str) -> dict[str, Any]:
    """INC 2.x: ``quantization.fit``; ``auto`` is its own default, the others are strategies of level 1."""
    from neural_compressor import quantization  # type: ignore[import-not-found,unused-ignore]
    from neural_compressor.config import (  # type: ignore[import-not-found,unused-ignore]
        AccuracyCriterion,
        PostTrainingQuantConfig,
        TuningCriterion,
    )

    class Loader:
        batch_size = len(next(iter(case.calibration[0].values())))

        def __iter__(self) -> Iterator[tuple[Any, int]]:
            for feed in case.calibration:
                yield (feed if len(feed) > 1 else next(iter(feed.values()))), 0

    size = sum(len(next(iter(feed.values()))) for feed in case.calibration)
    config = PostTrainingQuantConfig(
        approach="static",
        quant_format="QDQ",  # its default format refuses a Pad or Clip with an empty optional input
        calibration_sampling_size=[size],
        quant_level="auto" if strategy == "auto" else 1,
        accuracy_criterion=AccuracyCriterion(criterion="relative", tolerable_loss=LOSS),
        tuning_criterion=TuningCriterion(
            strategy="basic" if strategy == "auto" else strategy, timeout=0, max_trials=100
        ),
    )
    clock = Clock()
    model = quantization.fit(
        str(case.path), config, calib_dataloader=Loader(), eval_func=lambda m: case.evaluate(predictor(m))
    )
    spent = clock.spent()
    if model is not None:
        model.save(str(out / "model.onnx"))
    return {**spent, "evaluations": case.evaluations}


def tune_nncf(case: Case, out: Path, strategy: str) -> dict[str, Any]:
    """NNCF: ``quantize_with_accuracy_control``, each sample an item, so that it can rank on 300 of them."""
    import nncf  # type: ignore[import-not-found,unused-ignore]

    samples = list(range(case.limit or _samples(case)))
    scored = 0

    def validate(model: onnx.ModelProto, items: Iterable[int]) -> tuple[float, list[Any]]:
        nonlocal scored
        rows = np.asarray(list(items))
        scored += len(rows)
        return _score(case, predictor(model), rows)

    clock = Clock()
    model = nncf.quantize_with_accuracy_control(
        onnx.load(case.path),
        nncf.Dataset(case.calibration),
        nncf.Dataset(samples),
        validate,
        max_drop=LOSS,
        drop_type=nncf.DropType.RELATIVE,
        subset_size=len(case.calibration),
        model_type=nncf.ModelType.TRANSFORMER if case.name == "minilm" else None,
    )
    spent = clock.spent()
    onnx.save(model, out / "model.onnx")
    return {**spent, "evaluations": scored / len(samples)}


def _samples(case: Case) -> int:
    with np.load(ASSETS / "data" / ("stsb_test.npz" if case.name == "minilm" else "cifar10_eval.npz")) as file:
        return len(file["scores" if case.name == "minilm" else "labels"])


def _score(case: Case, predict: Predict, rows: Any) -> tuple[float, list[Any]]:
    """The metric over some samples, and what each of them gave."""
    import asset_tasks

    if case.name == "minilm":
        with np.load(ASSETS / "data" / "stsb_test.npz") as file:
            data = dict(file)
        first, second = (_embed(predict, data, side, rows) for side in "ab")
        value = asset_tasks.spearman((first * second).sum(1), data["scores"][rows]) if len(rows) > 1 else 0.0
        return float(value), [[a, b] for a, b in zip(first, second, strict=True)]
    prepare = asset_tasks.signed_norm if case.name == "mobilenetv1" else asset_tasks.imagenet_norm
    with np.load(ASSETS / "data" / "cifar10_eval.npz") as file:
        images, labels = prepare(file["images"][rows]), file["labels"][rows]
    parts = [predict({"input": images[i : i + 100]}).argmax(1) for i in range(0, len(rows), 100)]
    hits = (np.concatenate(parts) == labels).astype(float)
    return float(hits.mean()), list(map(float, hits))


def _embed(predict: Predict, data: dict[str, Any], side: str, rows: Any) -> Any:
    mask = data[f"attention_mask_{side}"][rows].astype(np.int64)
    ids = data[f"input_ids_{side}"][rows].astype(np.int64)
    order = np.argsort(mask.sum(1), kind="stable")
    out = np.zeros((len(rows), 384), np.float32)
    for start in range(0, len(rows), 32):
        part = order[start : start + 32]
        length = int(mask[part].sum(1).max())
        out[part] = predict({"input_ids": ids[part, :length], "attention_mask": mask[part, :length]})
    return out


# ------------------------------------------------------------------------------------------------------------- judge


def judge(case: Case, paths: Sequence[Path]) -> dict[str, Any]:
    """What final models are: accuracy, ops on integers and latency, in this one version of ONNX Runtime."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from models import integer_ops

    fp32 = case.path.read_bytes()
    baseline_s, baseline = _timed(case, fp32)
    calibrate, started = predictor(fp32), time.process_time()
    for feed in case.calibration:
        calibrate(feed)
    floor = {"baseline_s": baseline_s, "calibration_s": time.process_time() - started}
    judged: dict[str, Any] = {}
    for path in paths:
        model = path.read_bytes()
        accepted_s, accuracy = _timed(case, model)
        without = case.evaluate(predictor(model, ["WeightBiasQuantization"]))
        judged[str(path)] = {
            "accuracy": accuracy,
            "accuracy_without_weight_bias_quantization": without,
            "met": bool(accuracy >= baseline * (1 - LOSS)),
            "ops_int8": integer_ops(path),
            "latency": {f"b{batch}": _latency(case, model, fp32, batch) for batch in (1, 32)},
            "accepted_s": accepted_s,
        }
    return {"fp32_accuracy": baseline, "floor": floor, "models": judged}


def _latency(case: Case, model: bytes, fp32: bytes, batch: int) -> list[float]:
    """Ratio to fp32 with its 95% confidence interval, in alternating blocks."""
    from distune.evaluation.latency import measure

    feed = case.task.feed(batch)
    candidate, reference = session(model), session(fp32)
    timed = measure(
        lambda: candidate.run(None, feed), lambda: reference.run(None, feed), max_seconds=LATENCY_SECONDS, warmup=3
    )
    return [timed.ratio, timed.ci_low, timed.ci_high]


def _timed(case: Case, model: bytes) -> tuple[float, float]:
    """Processor seconds of inference in a complete evaluation, and what it came to."""
    inner = predictor(model)
    spent = 0.0

    def predict(feed: Feed) -> Any:
        nonlocal spent
        started = time.process_time()
        output = inner(feed)
        spent += time.process_time() - started
        return output

    value = case.evaluate(predict)
    return spent, value


def main() -> int:
    """Do one thing and write ``FOLDER/facts.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("inc", "nncf", "judge"))
    parser.add_argument("case", choices=LIMITS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--strategy", default="basic", help="of INC")
    parser.add_argument("--model", type=Path, action="append", default=[], help="to judge")
    given = parser.parse_args()
    case = Case(given.case)
    if given.what == "judge":
        facts = judge(case, given.model)
    else:
        facts = {"inc": tune_inc, "nncf": tune_nncf}[given.what](case, given.out, given.strategy)
    facts["onnxruntime"] = ort.__version__
    (given.out / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
