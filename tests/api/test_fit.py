"""``quantization.fit`` on a small model: what it takes, what it returns, and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from distune import quantization
from distune.config import (
    AccuracyCriterion,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
    set_workspace,
)
from distune.errors import ModelError, UsageError, UserCodeError
from tests.api.small import Batches, model, run, samples, score


def conf(**given: Any) -> PostTrainingQuantConfig:
    given = {"calibration_sampling_size": 100, "accuracy_criterion": AccuracyCriterion(tolerable_loss=0.1)} | given
    return PostTrainingQuantConfig(**given)


def never_met(proto: Any) -> float:
    """Only the fp32 model, which is not quantized, scores."""
    return float(not any(node.op_type == "QuantizeLinear" for node in proto.graph.node))


def test_an_eval_func_gets_a_model_that_can_be_called_and_used_as_a_proto(tmp_path: Path) -> None:
    def both_ways(given: Any) -> float:
        images, labels = samples()
        called = given(images)
        onnx.save(given, str(tmp_path / "seen.onnx"))
        assert np.array_equal(called, run(given, images))
        assert given.graph.node
        return float((called.argmax(1) == labels).mean())

    found = quantization.fit(model(), conf(), calib_dataloader=Batches(), eval_func=both_ways, quiet=True)
    assert found
    assert found.outcome == "met"
    assert found.accuracy is not None
    assert found.accuracy >= 0.9
    assert any(node.op_type == "QuantizeLinear" for node in found.model.graph.node)
    assert found.trials[-1].accuracy == found.accuracy
    assert found.q_config.quantized_ops
    assert onnx.load(tmp_path / "seen.onnx").graph.node


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        quantization.fit(str(tmp_path), conf(), Batches(), eval_func=score)


def test_a_path_and_a_metric_by_name(tmp_path: Path) -> None:
    onnx.save(model(), str(tmp_path / "m.onnx"))
    found = quantization.fit(
        "m.onnx", conf(), calib_dataloader=Batches(), eval_dataloader=Batches(), eval_metric={"topk": 1}, quiet=True
    )
    assert found
    assert found.result.baseline.metrics == {"topk": 1.0}


class Agreement:
    """A metric of the user's."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.right = self.seen = 0

    def update(self, predictions: Any, labels: Any) -> None:
        self.right += int((np.asarray(predictions).argmax(1) == labels).sum())
        self.seen += len(labels)

    def result(self) -> float:
        return self.right / self.seen


class Disagreement(Agreement):
    """Lower is better, as the criterion says."""

    def result(self) -> float:
        return 1 - super().result()


@pytest.mark.parametrize(
    "metric", [Agreement, Agreement(), Disagreement, "Accuracy", {"MSE": {"compare_label": False}}]
)
def test_metrics_of_every_form(metric: Any) -> None:
    lower = isinstance(metric, dict) or metric is Disagreement
    criterion = AccuracyCriterion(higher_is_better=not lower, criterion="absolute", tolerable_loss=0.1)
    given = conf(accuracy_criterion=criterion)
    data = {"calib_dataloader": Batches(), "eval_dataloader": Batches(), "eval_metric": metric}
    assert quantization.fit(model(), given, **data, quiet=True).outcome == "met"


def test_a_criterion_that_looks_the_wrong_way_is_refused() -> None:
    data = {"calib_dataloader": Batches(), "eval_dataloader": Batches()}
    with pytest.raises(UsageError, match=r"lower is better for the metric MSE.*higher_is_better to false"):
        quantization.fit(model(), conf(), **data, eval_metric={"MSE": {"compare_label": False}}, quiet=True)


def test_saving_to_a_file_and_to_a_folder(tmp_path: Path) -> None:
    found = quantization.fit(model(), conf(), calib_dataloader=Batches(), eval_func=score, quiet=True)
    (file,) = found.save(tmp_path / "out" / "int8.onnx")
    assert onnx.load(file) == found.model
    assert {path.name for path in found.save(tmp_path / "folder")} == {"model.onnx", "tuning_config.yaml"}
    assert yaml.safe_load((tmp_path / "folder" / "tuning_config.yaml").read_text())["framework"] == "onnxruntime"


def tuned_with_weights_beside_it(folder: Path, shift: int = 0) -> quantization.FitResult:
    """Of a model that keeps its weights in a file of their own, named as torch's exporter does."""
    proto = onnx.load_model_from_string(model().SerializeToString())
    for tensor in proto.graph.initializer:
        tensor.raw_data = np.roll(np.frombuffer(tensor.raw_data, np.float32), shift).tobytes()
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return quantization.fit(str(folder / "model.onnx"), conf(), calib_dataloader=Batches(), quiet=True, fresh=True)


def test_a_model_with_its_weights_beside_it_is_whole_in_memory_and_in_every_file(tmp_path: Path) -> None:
    models, (images, _) = tmp_path / "models", samples()
    models.mkdir()
    found = tuned_with_weights_beside_it(models)
    expected = run(found.model, images)
    fp32 = {path: path.read_bytes() for path in models.iterdir()}
    files = found.save(models / "int8.onnx")
    assert [file.name for file in files] == ["int8.onnx", "int8.onnx.data"]
    for target in (models, models / "model.onnx"):
        with pytest.raises(UsageError, match=r"model\.onnx.*another name"):
            found.save(target)
    assert {path: path.read_bytes() for path in fp32} == fp32
    tuned_with_weights_beside_it(models, shift=3).save(models / "other.onnx")
    np.testing.assert_array_equal(run(onnx.load(models / "int8.onnx"), images), expected)
    assert np.abs(run(onnx.load(models / "other.onnx"), images) - expected).max() > 0.1
    folder = found.save(tmp_path / "folder")
    assert [file.name for file in folder] == ["model.onnx", "model.onnx.data", "tuning_config.yaml"]
    np.testing.assert_array_equal(run(onnx.load(folder[0]), images), expected)


def test_what_is_not_accepted_is_false_and_reachable_by_name(tmp_path: Path) -> None:
    given = conf(quant_level=1, tuning_criterion=TuningCriterion(max_trials=2))
    found = quantization.fit(model(), given, calib_dataloader=Batches(), eval_func=never_met, quiet=True)
    assert not found
    assert (found.outcome, found.model, found.accuracy, found.q_config) == ("budget_spent", None, None, None)
    assert len(found.trials) == 2
    with pytest.raises(UsageError, match=r"no model was accepted.*best_effort\.save"):
        found.save(tmp_path / "x")
    assert found.best_effort is not None
    assert found.best_effort.save(tmp_path / "effort.onnx")
    assert found.best_effort.accuracy == 0.0


def test_without_a_way_to_judge_it_is_quantized_once() -> None:
    found = quantization.fit(model(), conf(), calib_dataloader=Batches(), quiet=True)
    assert found
    assert found.outcome == "not_judged"
    assert found.accuracy is None
    assert found.model is not None


def test_a_format_that_is_not_written_is_said() -> None:
    with pytest.warns(UserWarning, match=r"quant_format has no effect: models are written in QDQ form"):
        found = quantization.fit(model(), conf(quant_format="QOperator"), calib_dataloader=Batches(), quiet=True)
    assert found.best_effort is not None
    assert found.best_effort.saved.quant_format == "QDQ"


def test_rules_by_type_and_name_are_kept() -> None:
    fp32 = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
    found = quantization.fit(
        model(), conf(op_name_dict={"fc1": fp32}), calib_dataloader=Batches(), eval_func=score, quiet=True
    )
    assert found.q_config is not None
    assert "fc1" not in found.q_config.quantized_ops
    assert "fc0" in found.q_config.quantized_ops


def test_functions_that_cannot_travel_run_here_and_it_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    lock, calls = threading.Lock(), []

    def locked(proto: Any) -> float:
        with lock:
            calls.append(1)
            return score(proto)

    found = quantization.fit(model(), conf(), calib_dataloader=Batches(), eval_func=locked, quiet=True)
    assert found
    assert len(calls) == 1 + len(found.trials)
    assert "trials run in this process" in capfd.readouterr().err
    with pytest.raises(UsageError, match=r"eval_func.*cannot travel"):
        quantization.fit(model(), conf(), calib_dataloader=Batches(), eval_func=locked, isolation="process", quiet=True)


def test_several_objectives_with_weights_choose_among_all_that_meet() -> None:
    criterion = TuningCriterion(
        objective={"performance": 0.2, "modelsize": 0.5, "footprint": 0.3}, timeout=600, max_trials=3
    )
    found = quantization.fit(
        model(),
        conf(quant_level=1, tuning_criterion=criterion),
        calib_dataloader=Batches(),
        eval_func=score,
        quiet=True,
    )
    assert found
    met = [trial for trial in found.trials if trial.met]
    assert all(trial.latency and trial.footprint_ratio for trial in met)


def test_every_metric_without_weights_must_meet() -> None:
    """Agreement meets, the MSE does not: its baseline is 0, so no loss at all is allowed to it."""
    data = {"calib_dataloader": Batches(), "eval_dataloader": Batches()}
    several = {"Accuracy": {}, "MSE": {"compare_label": False}}
    given = conf(quant_level=1, tuning_criterion=TuningCriterion(max_trials=1))
    found = quantization.fit(model(), given, **data, eval_metric={"multi_metrics": several}, quiet=True)
    (trial,) = found.trials
    assert trial.metrics["Accuracy"] >= 0.9
    assert trial.metrics["MSE"] > 0
    assert trial.verdict == "not_met"
    absolute = AccuracyCriterion(criterion="absolute", tolerable_loss=0.1)
    given = conf(quant_level=1, accuracy_criterion=absolute)
    assert quantization.fit(model(), given, **data, eval_metric={"multi_metrics": several}, quiet=True)


def test_weighted_metrics_are_judged_by_their_mean() -> None:
    data = {"calib_dataloader": Batches(), "eval_dataloader": Batches()}
    metric = {"multi_metrics": {"topk": 1, "Accuracy": {}, "weight": [0.25, 0.75]}}
    found = quantization.fit(model(), conf(), **data, eval_metric=metric, quiet=True)
    assert found
    metrics = found.trials[-1].metrics
    assert found.accuracy == pytest.approx(0.25 * metrics["topk"] + 0.75 * metrics["Accuracy"])


def test_the_same_script_again_goes_on_where_it_ended(tmp_path: Path) -> None:
    set_workspace(tmp_path / "ws")
    calls = []

    def counted(proto: Any) -> float:
        calls.append(1)
        return score(proto)

    def start() -> Any:
        return quantization.fit(
            model(), conf(), calib_dataloader=Batches(), eval_func=counted, isolation="none", quiet=True
        )

    first = start()
    from distune.config.process_options import options

    options._uses.clear()  # as in a new process
    again = start()
    assert len(calls) == 1 + len(first.trials)
    assert again.accuracy == first.accuracy
    assert start().workspace == tmp_path / "ws" / "fit-2"


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    good = {"calib_dataloader": Batches(), "eval_func": score, "quiet": True}
    with pytest.raises(ModelError, match=r"nowhere\.onnx.*does not exist"):
        quantization.fit("nowhere.onnx", conf(), **good)
    with pytest.raises(ModelError, match="the model is a int; give the path"):
        quantization.fit(3, conf(), **good)
    with pytest.raises(UsageError, match="conf is a dict; expected a PostTrainingQuantConfig"):
        quantization.fit(model(), {}, **good)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"trains the model: use distune\.training\.prepare_compression"):
        quantization.fit(model(), QuantizationAwareTrainingConfig(), **good)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="eval_metric needs data: give eval_dataloader"):
        quantization.fit(model(), conf(), calib_dataloader=Batches(), eval_metric="topk")
    with pytest.raises(UsageError, match="static quantization needs calib_dataloader"):
        quantization.fit(model(), conf(), eval_func=score, quiet=True)
    with pytest.raises(UsageError, match="give its batches as calib_dataloader"):
        quantization.fit(model(), conf(), calib_func=score, eval_func=score)
    with pytest.raises(UsageError, match=r"eval_metric.*: unknown metric 'topq'.*did you mean 'topk'"):
        quantization.fit(model(), conf(), calib_dataloader=Batches(), eval_dataloader=Batches(), eval_metric="topq")
    bad = conf(quant_level=1, tuning_criterion=TuningCriterion(strategy="baysian"))
    with pytest.raises(UsageError, match=r"TuningCriterion\.strategy: unknown strategy 'baysian'.*'bayesian'"):
        quantization.fit(model(), bad, **good)
    with pytest.raises(UserCodeError, match="ZeroDivisionError"):
        quantization.fit(model(), conf(), calib_dataloader=Batches(), eval_func=lambda proto: 1 / 0, quiet=True)
    with pytest.raises(UsageError, match="eval_func is a str, which cannot be called"):
        quantization.fit(model(), conf(), calib_dataloader=Batches(), eval_func="score")  # type: ignore[arg-type]


def test_a_signal_ends_it_in_order() -> None:
    calls: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):

        def score_and_signal(proto: Any, number: int = number) -> float:
            calls.append(number)
            if calls.count(number) == 2:
                os.kill(os.getpid(), number)
            return never_met(proto)

        before = signal.getsignal(number)
        found = quantization.fit(
            model(), conf(), Batches(), eval_func=score_and_signal, isolation="none", fresh=True, quiet=True
        )
        assert signal.getsignal(number) is before
        assert found.outcome == "interrupted"
        assert not found
        assert signal.Signals(number).name in found.result.failure


def test_in_another_thread_signals_stay_as_they_are() -> None:
    found: list[quantization.FitResult] = []
    work = threading.Thread(
        target=lambda: found.append(
            quantization.fit(model(), conf(), Batches(), eval_func=score, isolation="none", quiet=True)
        )
    )
    before = signal.getsignal(signal.SIGTERM)
    work.start()
    work.join()
    assert found[0]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_result_prints_as_one_short_line() -> None:
    found = quantization.fit(model(), conf(), Batches(), eval_func=score, isolation="none", quiet=True)
    assert re.fullmatch(r"<FitResult met, accuracy [0-9.]+, \d+ trials, in .*>", repr(found))
