"""Scores: of datasets and metrics, of eval_funcs, and of the real models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distune.backends.base import Feed, InputInfo, Outputs, RunnableModel
from distune.config.job import ComponentSpec, DataloaderSpec, EvaluationSpec, MetricSpec
from distune.errors import DataError, UsageError, UserCodeError
from distune.evaluation.accuracy import Evaluator, Score
from distune.evaluation.finite import Watch

HERE = "tests.evaluation.user_evaluation"


class FunctionModel(RunnableModel):
    """A model that is a function of its feed."""

    def __init__(self, function: Callable[[Feed], Outputs], native: Any = None) -> None:
        self._function = function
        self._native = native
        self.runs = 0

    def predict(self, feed: Feed) -> Outputs:
        self.runs += 1
        return self._function(feed)

    @property
    def native(self) -> Any:
        return self._native

    @property
    def size_bytes(self) -> int:
        return 0


class OnnxModel(RunnableModel):
    """An fp32 ONNX file in a plain session."""

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = {"tensor(float)": "float32", "tensor(int64)": "int64"}
        self.inputs = [InputInfo(i.name, kinds[i.type], tuple(i.shape)) for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def predict(self, feed: Feed) -> Outputs:
        found: Outputs = self.session.run(None, dict(feed))
        return found

    @property
    def native(self) -> Any:
        return self.session

    @property
    def size_bytes(self) -> int:
        return 0


INPUTS = [InputInfo("x", "float32", ("n", 4))]
RNG = np.random.default_rng(5)
ROWS = RNG.normal(size=(30, 4)).astype(np.float32)
CLASSES = np.where(RNG.random(30) < 0.7, ROWS.argmax(1), 0)
DATA = [(ROWS[i : i + 8], CLASSES[i : i + 8]) for i in range(0, 30, 8)]


def metric(name: str, weight: float | None = None, **args: Any) -> MetricSpec:
    return MetricSpec(ComponentSpec(name, args), weight)


def evaluator(*metrics: MetricSpec, data: Any = DATA, **settings: Any) -> Evaluator:
    limit = settings.pop("memory_limit", None)
    return Evaluator(EvaluationSpec(data, metrics, **settings), INPUTS, ["y"], 0, memory_limit=limit)


def identity() -> FunctionModel:
    return FunctionModel(lambda feed: [feed["x"]])


EXACT = float(np.mean(ROWS.argmax(1) == CLASSES))


def test_score_is_the_metric_over_all_samples() -> None:
    score = evaluator(metric("topk")).score(identity())
    assert (score.value, score.metrics, score.samples, score.complete) == (EXACT, {"topk": EXACT}, 30, True)
    assert 0 < score.inference_s < score.evaluate_s


def test_a_second_model_is_scored_from_scratch_and_on_the_same_batches() -> None:
    judge = evaluator(metric("topk"))
    sizes: list[int] = []
    watched = FunctionModel(lambda feed: [sizes.append(len(feed["x"])) or feed["x"]])  # type: ignore[func-returns-value]
    assert [judge.score(watched).value for _ in range(3)] == [EXACT] * 3
    assert sizes == [8, 8, 8, 6] * 3


def test_data_beyond_the_memory_limit_are_read_again() -> None:
    class Counted(list[Any]):
        reads = 0

        def __iter__(self) -> Any:
            type(self).reads += 1
            return super().__iter__()

    for limit, reads in ((0, 2), (1 << 20, 1)):
        Counted.reads = 0
        judge = evaluator(metric("topk"), data=Counted(DATA), memory_limit=limit)
        before = Counted.reads
        assert judge.score(identity()).value == judge.score(identity()).value == EXACT
        assert Counted.reads - before == reads


def test_iteration_limits_the_batches() -> None:
    assert evaluator(metric("topk"), iteration=2).score(identity()).samples == 16


def test_several_metrics_with_weights_and_without() -> None:
    plain = evaluator(metric("topk"), metric("topk", k=2)).score(identity())
    assert list(plain.metrics) == ["topk", "topk(k=2)"]
    assert plain.value == plain.metrics["topk"]
    weighted = evaluator(metric("topk", 1), metric("topk", 3, k=2)).score(identity())
    assert weighted.value == pytest.approx((weighted.metrics["topk"] + 3 * weighted.metrics["topk(k=2)"]) / 4)
    with pytest.raises(DataError, match="all or none"):
        evaluator(metric("topk", 1), metric("topk"))
    with pytest.raises(DataError, match="different directions"):
        evaluator(metric("topk", 1), metric("MSE", 1))
    assert evaluator(metric("topk"), metric("MSE")).metric_directions == {"topk": True, "MSE": False}


def test_fp32_predictions_as_labels() -> None:
    judge = evaluator(metric("MSE", compare_label=False), metric("topk", compare_label=False), metric("Accuracy"))
    assert judge.needs_reference
    with pytest.raises(DataError, match="reference"):
        judge.score(identity())
    judge.set_reference(identity())
    same = judge.score(identity())
    assert same.metrics == {"MSE": 0.0, "topk": 1.0, "Accuracy": EXACT}
    shifted = judge.score(FunctionModel(lambda feed: [feed["x"] + 2]))
    assert shifted.metrics["MSE"] == pytest.approx(4)
    assert shifted.metrics["topk"] == 1.0


def test_postprocess_stands_between_model_and_metric() -> None:
    shifted = [(x, y + 1) for x, y in DATA]
    steps = (ComponentSpec("LabelShift", {"label_shift": 1}),)
    assert evaluator(metric("topk"), data=shifted, postprocess=steps).score(identity()).value == EXACT
    with pytest.raises(DataError, match="random"):
        evaluator(metric("topk"), postprocess=(ComponentSpec("RandomCrop", {"size": 1}),))


def test_nothing_to_score_with() -> None:
    with pytest.raises(UsageError, match="eval_func, or a dataloader"):
        Evaluator(EvaluationSpec(DATA), INPUTS, ["y"], 0)


# ------------------------------------------------------------------------------------------------------- eval_func


def by_function(function: Any, model: RunnableModel | None = None, inputs: Any = INPUTS) -> Score:
    return Evaluator(EvaluationSpec(eval_func=function), inputs, ["y"], 0).score(model or identity())


def test_eval_func_is_called_once_per_score() -> None:
    calls = []
    judge = Evaluator(EvaluationSpec(eval_func=lambda model: calls.append(model) or 0.25), INPUTS, ["y"], 0)
    assert not calls
    assert judge.score(identity()).value == 0.25
    assert len(calls) == 1
    assert by_function(f"{HERE}:always_half").value == 0.5


@pytest.mark.parametrize("number", [1, 0.5, np.float32(0.5), np.int64(3), np.array(0.5), math.inf])
def test_numbers_of_all_kinds(number: Any) -> None:
    assert by_function(lambda model: number).value == float(number)


def test_nan_passes_through_since_it_never_meets() -> None:
    assert math.isnan(by_function(lambda model: float("nan")).value)


@pytest.mark.parametrize(
    ("returned", "said"),
    [(None, "NoneType"), (True, "bool"), (np.ones(3), r"ndarray of shape \(3,\)"), ("0.5", "str"), ((1, 2), "tuple")],
)
def test_anything_else_is_the_users_error(returned: Any, said: str) -> None:
    with pytest.raises(UserCodeError, match=f"must return one number; it returned a {said}"):
        by_function(lambda model: returned)


def named(function: Any, *names: str) -> Evaluator:
    return Evaluator(EvaluationSpec(eval_func=function, names=names), INPUTS, ["y"], 0)


def test_eval_func_may_return_metrics_by_name_and_gets_parameters_by_keyword() -> None:
    def function(model: Any, cut: float = 0.0) -> dict[str, float]:
        return {"recall": 0.5, "precision": cut, "extra": 1}

    score = named(function, "precision", "recall").score(identity(), {"cut": 0.25})
    assert score.value == 0.25
    assert score.metrics == {"recall": 0.5, "precision": 0.25, "extra": 1.0}


def test_one_number_is_the_one_metric_that_is_asked_for() -> None:
    score = named(lambda model: 0.75, "f1").score(identity())
    assert (score.value, score.metrics) == (0.75, {"f1": 0.75})


def test_a_metric_that_is_asked_for_and_not_given_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"asks for recall, and .* gives f1"):
        named(lambda model: {"f1": 1.0}, "f1", "recall").score(identity())
    with pytest.raises(UsageError, match=r"asks for f1, recall, and .* gives one number"):
        named(lambda model: 1.0, "f1", "recall").score(identity())


def test_what_eval_func_raises_is_shown_with_its_own_frames() -> None:
    with pytest.raises(UserCodeError) as caught:
        by_function(f"{HERE}:raises")
    message = str(caught.value)
    assert "raised KeyError: 'no such key'" in message
    assert "user_evaluation.py" in message
    assert "accuracy.py" not in message


def test_the_model_can_be_called_in_every_usual_way() -> None:
    two = [InputInfo("a", "float32", ("n", 1)), InputInfo("b", "int64", ("n", 1))]
    model = FunctionModel(lambda feed: [feed["a"] + feed["b"]])
    a, b = np.ones((2, 1), np.float32), np.full((2, 1), 2, np.int32)
    seen: list[Any] = []

    def score(m: Any) -> float:
        seen.extend([m(a, b), m(a=a, b=b), m({"a": a, "b": b}), m([a, b]), m.predict(a, b)])
        return len(m.inputs)

    assert by_function(score, model, two).value == 2
    assert all(np.array_equal(out, [[3], [3]]) for out in seen)
    several = FunctionModel(lambda feed: [feed["x"], feed["x"]])
    assert by_function(lambda m: len(m(ROWS)), several).value == 2
    with pytest.raises(DataError, match="'x'"):
        by_function(lambda m: m(np.zeros((2, 3), np.float32)).sum())


def test_torch_tensors_go_in() -> None:
    torch = pytest.importorskip("torch")
    assert by_function(lambda m: m(torch.ones(2, 4)).sum()).value == 8


def test_functions_written_for_the_native_model_keep_working() -> None:
    class Proto:
        def SerializeToString(self) -> bytes:
            return b"1234"

    assert by_function(lambda m: len(m.SerializeToString()), FunctionModel(lambda f: [], Proto())).value == 4


# ----------------------------------------------------------------------------------------------------- real models


def image_spec(assets: Path, data: str, transforms: Mapping[str, Mapping[str, Any]], batch_size: int) -> EvaluationSpec:
    dataset = ComponentSpec("Npz", {"path": str(assets / "data" / data), "inputs": "images", "label": "labels"})
    steps = tuple(ComponentSpec(name, args) for name, args in transforms.items())
    return EvaluationSpec(DataloaderSpec(dataset, steps, batch_size), (metric("topk"),))


CIFAR = {
    "Rescale": {},
    "Normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "Transpose": {"perm": [2, 0, 1]},
}


@pytest.mark.assets
def test_resnet20_on_cifar10(assets: Path) -> None:
    model = OnnxModel(assets / "models" / "resnet20_cifar10.onnx")
    judge = Evaluator(image_spec(assets, "cifar10_eval.npz", CIFAR, 100), model.inputs, model.outputs, 0)
    cold, warm = judge.score(model), judge.score(model)
    assert cold.value == warm.value == 0.8158
    assert warm.samples == 5000
    assert 1 - warm.inference_s / warm.evaluate_s < 0.03


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "shape", "expected"), [("digits_mlp", [64], 0.9489), ("digits_cnn", [1, 8, 8], 0.9756)]
)
def test_digits(assets: Path, name: str, shape: list[int], expected: float) -> None:
    model = OnnxModel(assets / "models" / f"{name}.onnx")
    steps = {"Rescale": {"divisor": 16}, "Reshape": {"shape": shape}}
    judge = Evaluator(image_spec(assets, "digits_eval.npz", steps, 50), model.inputs, model.outputs, 0)
    assert round(judge.score(model).value, 4) == expected


@pytest.mark.assets
def test_chargpt_perplexity_from_one_token_array(assets: Path) -> None:
    model = OnnxModel(assets / "models" / "chargpt_shakespeare.onnx")
    path = str(assets / "data" / "shakespeare_eval.npz")
    dataset = ComponentSpec("Npz", {"path": path, "inputs": "tokens[:, :-1]", "label": "tokens[:, 1:]", "limit": 64})
    spec = EvaluationSpec(DataloaderSpec(dataset, batch_size=32), (metric("Perplexity"),))
    judge = Evaluator(spec, model.inputs, model.outputs, 0)
    assert judge.score(model).value == pytest.approx(4.3808, rel=0.1)
    assert judge.metric_directions == {"Perplexity": False}


@pytest.mark.assets
def test_stsb_by_eval_func_and_by_npz_with_two_inputs(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = OnnxModel(assets / "models" / "minilm_stsb.onnx")
    data = assets / "data" / "stsb_test.npz"
    monkeypatch.setenv("DISTUNE_TEST_STSB", str(data))
    judge = Evaluator(EvaluationSpec(eval_func=f"{HERE}:stsb_spearman"), model.inputs, model.outputs, 0)
    score = judge.score(model)
    assert 0.7 < score.value < 0.95
    assert 0 < score.inference_s < score.evaluate_s

    inputs = {"input_ids": "input_ids_a", "attention_mask": "attention_mask_a"}
    dataset = ComponentSpec("Npz", {"path": str(data), "inputs": inputs, "label": "scores", "limit": 32})
    close = MetricSpec(ComponentSpec("MSE", {"compare_label": False}))
    npz = Evaluator(EvaluationSpec(DataloaderSpec(dataset, batch_size=16), (close,)), model.inputs, model.outputs, 0)
    npz.set_reference(model)
    assert npz.score(model).value == 0


@pytest.mark.parametrize("by_function", [False, True])
def test_what_is_not_finite_in_data_and_outputs_of_fp32_is_said(by_function: bool) -> None:
    def accuracy(model: Any) -> float:
        return float(np.mean([(model(rows).argmax(1) == labels).mean() for rows, labels in data]))

    def warnings(function: Callable[[Feed], Outputs]) -> tuple[str, ...]:
        settings = EvaluationSpec(eval_func=accuracy) if by_function else EvaluationSpec(data, (metric("topk"),))
        watch = Watch(["y"])
        score = Evaluator(settings, INPUTS, ["y"], 1).score_fp32(FunctionModel(function), watch=watch)
        assert math.isfinite(score.value)
        return watch.warnings

    data = DATA
    assert warnings(lambda feed: [feed["x"]]) == ()
    (said,) = warnings(lambda feed: [np.full_like(feed["x"], np.inf)])
    assert "fp32 model's outputs" in said
    assert "y (120 infinite)" in said
    assert "the data are finite" in said
    data = [(rows.copy(), labels) for rows, labels in DATA]
    data[1][0][2] = [np.nan, np.nan, 0, -np.inf]
    first, second = warnings(lambda feed: [feed["x"] + feed["x"]])
    assert "evaluation data" in first
    assert "x (2 NaN and 1 infinite)" in first
    assert "y (2 NaN and 1 infinite)" in second
