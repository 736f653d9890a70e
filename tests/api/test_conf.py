"""The classes of INC 2.x: every field and default, what is wrong is said, and both roads lead to the same job."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from distune.config import (
    AccuracyCriterion,
    BenchmarkConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
    options,
    set_random_seed,
    set_resume_from,
    set_tensorboard,
    set_workspace,
)
from distune.config.conf_to_job import Live, job_of
from distune.config.job import ModelSpec, TuningJob
from distune.config.load import load_config
from distune.errors import UsageError

DEFAULTS: dict[type, dict[str, Any]] = {
    PostTrainingQuantConfig: {
        "device": "cpu",
        "backend": "default",
        "domain": "auto",
        "recipes": {},
        "quant_format": "default",
        "inputs": [],
        "outputs": [],
        "approach": "static",
        "calibration_sampling_size": [100],
        "op_type_dict": None,
        "op_name_dict": None,
        "reduce_range": None,
        "example_inputs": None,
        "excluded_precisions": [],
        "quant_level": "auto",
        "accuracy_criterion": AccuracyCriterion(),
        "tuning_criterion": TuningCriterion(),
        "diagnosis": False,
        "ni_workload_name": "quantization",
    },
    QuantizationAwareTrainingConfig: {
        "device": "cpu",
        "backend": "default",
        "inputs": [],
        "outputs": [],
        "op_type_dict": None,
        "op_name_dict": None,
        "reduce_range": None,
        "model_name": "",
        "quant_format": "default",
        "excluded_precisions": [],
        "quant_level": "auto",
        "accuracy_criterion": AccuracyCriterion(),
        "tuning_criterion": TuningCriterion(),
    },
    TuningCriterion: {
        "strategy": "basic",
        "strategy_kwargs": None,
        "timeout": 0,
        "max_trials": 100,
        "objective": "performance",
        "latency": None,
    },
    AccuracyCriterion: {"higher_is_better": True, "criterion": "relative", "tolerable_loss": 0.01},
    MixedPrecisionConfig: {
        "device": "cpu",
        "backend": "default",
        "precisions": "bf16",
        "model_name": "",
        "inputs": [],
        "outputs": [],
        "quant_level": "auto",
        "tuning_criterion": TuningCriterion(),
        "accuracy_criterion": AccuracyCriterion(),
        "excluded_precisions": [],
        "op_name_dict": {},
        "op_type_dict": {},
        "example_inputs": None,
        "precision": None,
    },
    BenchmarkConfig: {
        "inputs": [],
        "outputs": [],
        "backend": "default",
        "device": "cpu",
        "warmup": 5,
        "iteration": -1,
        "model_name": "",
        "cores_per_instance": None,
        "num_of_instance": 1,
        "inter_num_of_threads": None,
        "intra_num_of_threads": None,
        "diagnosis": False,
        "ni_workload_name": "profiling",
    },
}


@pytest.mark.parametrize("cls", DEFAULTS)
def test_every_field_has_the_default_of_inc(cls: type) -> None:
    conf = cls()
    assert {item.name: getattr(conf, item.name) for item in fields(conf)} == DEFAULTS[cls]


def test_defaults_are_not_shared() -> None:
    one, other = PostTrainingQuantConfig(), PostTrainingQuantConfig()
    one.tuning_criterion.max_trials = 3
    assert other.tuning_criterion.max_trials == 100


WRONG = [
    (TuningCriterion, {"timout": 3}, "TuningCriterion: unknown field 'timout'; did you mean 'timeout'"),
    (TuningCriterion, {"timeout": "x"}, "TuningCriterion.timeout: expected a number, got 'x'"),
    (TuningCriterion, {"timeout": False}, "TuningCriterion.timeout: expected a number, got false"),
    (TuningCriterion, {"max_trials": 0}, "TuningCriterion.max_trials: expected a number of at least 1, got 0"),
    (TuningCriterion, {"max_trials": 1.5}, "TuningCriterion.max_trials: expected a whole number, got 1.5"),
    (TuningCriterion, {"objective": "performace"}, "TuningCriterion.objective: .*did you mean 'performance'"),
    (
        TuningCriterion,
        {"objective": {"objective": ["performance", "modelsize"], "weight": [1]}},
        r"TuningCriterion.objective\['weight'\]: expected 2 weights",
    ),
    (AccuracyCriterion, {"criterion": "relativ"}, "AccuracyCriterion.criterion: .*did you mean 'relative'"),
    (AccuracyCriterion, {"tolerable_loss": 1.0}, "AccuracyCriterion.tolerable_loss: .*below 1"),
    (AccuracyCriterion, {"tolerable_loss": -1, "criterion": "absolute"}, "tolerable_loss: .*cannot be negative"),
    (AccuracyCriterion, {"higher_is_better": 1}, "AccuracyCriterion.higher_is_better: expected true or false"),
    (PostTrainingQuantConfig, {"device": "xpu"}, "PostTrainingQuantConfig.device: expected cpu, or gpu for PyTorch"),
    (PostTrainingQuantConfig, {"backend": "itex"}, "PostTrainingQuantConfig.backend: itex needs TensorFlow"),
    (PostTrainingQuantConfig, {"backend": "defualt"}, "PostTrainingQuantConfig.backend: .*did you mean 'default'"),
    (PostTrainingQuantConfig, {"approach": "statik"}, "PostTrainingQuantConfig.approach: .*did you mean 'static'"),
    (PostTrainingQuantConfig, {"quant_level": 2}, "PostTrainingQuantConfig.quant_level: 2 is no quant_level"),
    (PostTrainingQuantConfig, {"quant_format": "qdq"}, "quant_format: 'qdq' is no quant_format; did you mean 'QDQ'"),
    (PostTrainingQuantConfig, {"domain": "vision"}, "PostTrainingQuantConfig.domain: expected one of auto, cv"),
    (PostTrainingQuantConfig, {"inputs": [3]}, "PostTrainingQuantConfig.inputs"),
    (PostTrainingQuantConfig, {"excluded_precisions": ["bf61"]}, "did you mean 'bf16'"),
    (PostTrainingQuantConfig, {"recipes": {"smooth_quan": True}}, "unknown recipe; did you mean 'smooth_quant'"),
    (PostTrainingQuantConfig, {"calibration_sampling_size": [0]}, "calibration_sampling_size"),
    (
        PostTrainingQuantConfig,
        {"op_type_dict": {"Conv": {"weight": {"dtyp": ["int8"]}}}},
        r"op_type_dict\['Conv'\]\['weight'\]\['dtyp'\]: unknown key; did you mean 'dtype'",
    ),
    (PostTrainingQuantConfig, {"op_name_dict": {"fc(": {"weight": {"dtype": ["fp32"]}}}}, "regular expression"),
    (PostTrainingQuantConfig, {"tuning_criterion": 3}, "tuning_criterion: expected a TuningCriterion, got 3"),
    (
        PostTrainingQuantConfig,
        {"tuning_criterion": TuningCriterion(strategy="mse")},
        "TuningCriterion.strategy: quant_level auto decides the strategy itself",
    ),
    (BenchmarkConfig, {"warmup": -1}, "BenchmarkConfig.warmup: expected a number of at least 0"),
    (BenchmarkConfig, {"num_of_instance": "two"}, "BenchmarkConfig.num_of_instance: expected a whole number"),
    (MixedPrecisionConfig, {"precisions": "fp8"}, "MixedPrecisionConfig.precisions"),
]


@pytest.mark.parametrize(("cls", "given", "message"), WRONG)
def test_what_is_wrong_is_said_by_its_field(cls: type, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cls(**given)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        PostTrainingQuantConfig(device="xpu", approach="statik")
    assert "device" in str(caught.value)
    assert "approach" in str(caught.value)


def test_setting_a_field_checks_it_and_keeps_the_old_value_where_it_is_wrong() -> None:
    conf = PostTrainingQuantConfig()
    with pytest.raises(UsageError, match="quant_level"):
        conf.quant_level = 7
    assert conf.quant_level == "auto"
    with pytest.raises(UsageError, match="unknown field 'quant_levl'; did you mean 'quant_level'"):
        conf.quant_levl = 1  # type: ignore[attr-defined]


def test_an_int_where_a_float_is_meant_is_fine() -> None:
    assert TuningCriterion(timeout=3).timeout == 3
    assert AccuracyCriterion(criterion="absolute", tolerable_loss=1).tolerable_loss == 1


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"domain": "nlp"}, "domain"),
        ({"reduce_range": True}, "reduce_range"),
        ({"example_inputs": [1, 2]}, "example_inputs"),
        ({"ni_workload_name": "mine"}, "ni_workload_name"),
    ],
)
def test_what_has_no_effect_warns(given: dict[str, Any], field: str) -> None:
    with pytest.warns(UserWarning, match=f"{field}.*has no effect: "):
        PostTrainingQuantConfig(**given)


def test_nothing_is_warned_of_without_need() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PostTrainingQuantConfig(excluded_precisions=["bf16"], tuning_criterion=TuningCriterion(strategy="basic"))


def test_options_are_checked(tmp_path: Path) -> None:
    set_random_seed(3)
    set_workspace(tmp_path / "ws")
    assert (options.random_seed, options.workspace) == (3, str(tmp_path / "ws"))
    with pytest.raises(UsageError, match="set_random_seed"):
        set_random_seed(-1)
    with pytest.raises(UsageError, match="no journal"):
        set_resume_from(tmp_path)
    set_tensorboard(True)
    assert options.tensorboard
    with pytest.raises(UsageError, match="set_tensorboard"):
        set_tensorboard("yes")  # type: ignore[arg-type]
    set_tensorboard(False)


def test_each_fit_of_a_script_has_a_folder_of_its_own(tmp_path: Path) -> None:
    set_workspace(tmp_path / "ws")
    assert [options.next_workspace() for _ in range(2)] == [tmp_path / "ws", tmp_path / "ws" / "fit-2"]


RULES = {
    "MatMul": {"weight": {"dtype": ["int8"], "scheme": "sym"}, "activation": {"dtype": ["uint8"]}},
}
NAMED = {"fc0": {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}}
ROADS: list[tuple[PostTrainingQuantConfig, Any, str]] = [
    (PostTrainingQuantConfig(quant_level=1), None, ""),
    (
        PostTrainingQuantConfig(),
        None,
        "quantization: {quant_level: auto}",
    ),
    (
        PostTrainingQuantConfig(
            approach="dynamic",
            quant_level=1,
            calibration_sampling_size=[50, 100],
            op_type_dict=RULES,
            op_name_dict=NAMED,
            recipes={"first_conv_or_matmul_quantization": False},
            accuracy_criterion=AccuracyCriterion(higher_is_better=False, criterion="absolute", tolerable_loss=0.5),
            tuning_criterion=TuningCriterion(
                strategy="mse_v2", strategy_kwargs={"confidence_batches": 3}, timeout=60, max_trials=7
            ),
        ),
        "MSE",
        """
quantization:
  approach: post_training_dynamic_quant
  calibration: {sampling_size: "50, 100"}
  optype_wise: {MatMul: {weight: {dtype: int8, scheme: [sym]}, activation: {dtype: uint8}}}
  op_wise: {fc0: {weight: {dtype: fp32}, activation: {dtype: fp32}}}
  recipes: {first_conv_or_matmul_quantization: false}
evaluation: {accuracy: {metric: MSE}}
tuning:
  strategy: {name: mse_v2, strategy_kwargs: {confidence_batches: 3}}
  accuracy_criterion: {absolute: 0.5, higher_is_better: false}
  exit_policy: {timeout: 60, max_trials: 7}
""",
    ),
    (
        PostTrainingQuantConfig(
            quant_level=0,
            tuning_criterion=TuningCriterion(
                objective={"performance": 0.7, "modelsize": 0.3}, latency={"batch_size": 4, "cores_per_instance": 2}
            ),
        ),
        {"multi_metrics": {"topk": 5, "Accuracy": {}, "weight": [0.2, 0.8]}},
        """
quantization: {quant_level: 0}
evaluation: {accuracy: {multi_metrics: {topk: {k: 5}, Accuracy: {}, weight: [0.2, 0.8]}}}
tuning:
  multi_objectives: {objective: [performance, modelsize], weight: [0.7, 0.3]}
  latency: {batch_size: 4, cores_per_instance: 2}
""",
    ),
]


@pytest.mark.parametrize(("conf", "metric", "text"), ROADS)
def test_yaml_and_classes_lead_to_the_same_job(
    conf: PostTrainingQuantConfig, metric: Any, text: str, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    file = tmp_path / "fragment.yaml"
    file.write_text(f"version: 1.0\n{text}\n")
    loaded = load_config(file)
    configuration = loaded.configuration.model_copy(update={"model": _model(tmp_path)})
    from_yaml = replace(loaded, configuration=configuration).job(str(tmp_path / "ws"))
    spec = ModelSpec("onnxruntime", str(tmp_path / "model.onnx"))
    data = [] if metric is not None else None
    live = Live(calib_dataloader=[], eval_dataloader=data, eval_metric=metric)
    from_python = job_of(conf, spec, live, workspace=str(tmp_path / "ws"))
    assert _comparable(from_python) == _comparable(from_yaml)


def _model(folder: Path) -> Any:
    from distune.config.schema import Model

    return Model.model_construct(framework="onnxruntime", path=str(folder / "model.onnx"))


def _comparable(job: TuningJob) -> TuningJob:
    """Without what lives in Python alone, and without positions in a file."""
    return replace(
        job,
        constraints=tuple(replace(rule, where="") for rule in job.constraints),
        calibration=replace(job.calibration, dataloader=None),
        evaluation=replace(job.evaluation, dataloader=None),
        source="",
    )
