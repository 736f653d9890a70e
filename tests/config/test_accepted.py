"""The forms that a configuration may take, and the job that comes of each."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distune.config.job import (
    CalibrationSpec,
    ComponentSpec,
    Constraint,
    CriterionSpec,
    DataloaderSpec,
    DiagnosisSpec,
    EvaluationSpec,
    ExitPolicy,
    LatencySpec,
    MetricSpec,
    ModelSpec,
    ObjectiveSpec,
    StrategySpec,
    TrialLimits,
    TuningJob,
)
from distune.config.load import load_config
from distune.errors import ConfigError
from tests.config.conftest import KNOWN, Load
from tests.config.documents import COMPLETE, CONSTRAINED, FRAGMENTS, SIGOPT, TUNED

DYNAMIC = "model: {path: model.onnx}\nquantization:\n  approach: dynamic\n"


def test_a_complete_file_becomes_the_job_it_describes(load: Load, folder: Path) -> None:
    job = load(COMPLETE).job()
    source = str(folder / "cfg.yaml")
    assert job == TuningJob(
        model=ModelSpec("onnxruntime", str(folder / "model.onnx"), "digits", "QDQ", ("x",), ("y",)),
        approach="static",
        calibration=CalibrationSpec(
            DataloaderSpec(
                ComponentSpec("Npz", {"path": str(folder / "calib.npz"), "inputs": "x"}),
                (
                    ComponentSpec("Resize", {"size": (32, 32)}),
                    ComponentSpec(f"{folder}/mine.py:Contrast", {"factor": 2}),
                ),
                batch_size=8,
                last_batch="discard",
                shuffle=True,
                filter=ComponentSpec("LabelBalance", {"size": 2}),
            ),
            (64, 32),
        ),
        constraints=(
            Constraint("model", "", {}, {"algorithm": ("minmax", "kl")}, f"{source}:22:3"),
            Constraint("optype", "Conv|Gemm", {"dtype": ("int8",), "bits": (8,)}, {}, f"{source}:25:5"),
            Constraint("op", "/block.1/.*", {}, {"dtype": ("uint8", "fp32")}, f"{source}:27:5"),
        ),
        recipes={"gemm_to_matmul": False},
        quant_level=1,
        strategy=StrategySpec("basic", {"refine": 3}),
        criterion=CriterionSpec("relative", 0.01),
        objectives=(ObjectiveSpec("performance", 0.7), ObjectiveSpec("modelsize", 0.3)),
        exit_policy=ExitPolicy(100.0, 20),
        evaluation=EvaluationSpec(
            dataloader=DataloaderSpec(
                ComponentSpec("Npz", {"path": str(folder / "eval.npz"), "inputs": "x", "label": "y"})
            ),
            metrics=(MetricSpec(ComponentSpec("topk", {"k": 1})),),
            postprocess=(ComponentSpec("LabelShift", {"label_shift": -1}),),
            iteration=5,
            performance=LatencySpec(batch_size=4, cores_per_instance=2, warmup=3, iteration=50),
        ),
        seed=7,
        isolation="none",
        limits=TrialLimits(90.0, 1500 * 2**20),
        workspace=str(folder / "run"),
        source=source,
    )


def test_what_is_not_said_takes_the_documented_default(
    load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    job = load(DYNAMIC).job()
    model = ModelSpec("onnxruntime", str(folder / "model.onnx"))
    expected = TuningJob(model, "dynamic", workspace=str(folder / "distune_workspace"), source=str(folder / "cfg.yaml"))
    assert job == expected
    assert (job.quant_level, job.strategy.name, job.calibration.sampling_sizes) == (1, "basic", (100,))


@pytest.mark.parametrize("text", FRAGMENTS)
def test_blocks_of_the_documents_are_fragments(load: Load, text: str) -> None:
    assert load(text).is_fragment


def test_a_document_block_in_a_job_says_what_it_lacks_and_nothing_else(load: Load) -> None:
    text = "model: {path: model.onnx}\n" + CONSTRAINED
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert "1 problem" in str(caught.value)
    assert "the dataset TFRecordDataset needs TensorFlow" in str(caught.value)


@pytest.mark.assets
def test_every_yaml_block_of_the_1x_documents_is_accepted(assets: Path, tmp_path: Path) -> None:
    document = assets.parent / "reference" / "documents" / "tuning_strategies_lpot_1x.md"
    if not document.is_file():
        pytest.skip("the 1.x documents are not beside the assets")
    blocks = re.findall(r"```yaml\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 5
    for block in blocks:
        (tmp_path / "block.yaml").write_text(block, encoding="utf-8")
        assert load_config(tmp_path / "block.yaml", (), KNOWN, {}).is_fragment


@pytest.mark.parametrize(
    ("written", "kind", "tolerance"),
    [
        ("relative: 0.02", "relative", 0.02),
        ("relative: 2%", "relative", 0.02),
        ("relative: 2.5 %", "relative", 0.025),
        ("relative: 1e-2", "relative", 0.01),
        ("relative: 0", "relative", 0.0),
        ("absolute: 3", "absolute", 3.0),
        ("absolute: '0.5'", "absolute", 0.5),
        ("higher_is_better: false", "relative", 0.01),
    ],
)
def test_tolerances(load: Load, written: str, kind: str, tolerance: float) -> None:
    criterion = load(f"{DYNAMIC}tuning: {{accuracy_criterion: {{{written}}}}}").job().criterion
    assert (criterion.kind, criterion.tolerance) == (kind, pytest.approx(tolerance))
    assert criterion.higher_is_better == ("higher" not in written)


@pytest.mark.parametrize("written", ["uint8, fp32", "[uint8, fp32]", "'uint8,fp32'", "!!python/tuple [UINT8, fp32]"])
def test_several_values_may_be_written_in_several_ways(load: Load, written: str) -> None:
    text = f"{DYNAMIC}  model_wise:\n    activation:\n      dtype: {written}\n"
    assert load(text).job().constraints[0].activation == {"dtype": ("uint8", "fp32")}


@pytest.mark.parametrize(
    ("written", "sizes"), [("100", (100,)), ("'1000, 2000'", (1000, 2000)), ("[5, 3]", (5, 3)), ("'7'", (7,))]
)
def test_sampling_sizes_keep_their_order(load: Load, written: str, sizes: tuple[int, ...]) -> None:
    job = load(
        f"model: {{path: model.onnx}}\nquantization: {{approach: dynamic, calibration: {{sampling_size: {written}}}}}"
    )
    assert job.job().calibration.sampling_sizes == sizes


def test_iterations_count_batches(load: Load) -> None:
    calibration = "{iterations: 3, dataloader: {batch_size: 8, dataset: Dummy}}"
    text = f"model: {{path: model.onnx}}\nquantization: {{calibration: {calibration}}}"
    assert load(text).job().calibration.sampling_sizes == (24,)


@pytest.mark.parametrize(
    ("framework", "path", "backend", "quant_format", "approach"),
    [
        ("onnxrt_qdq", "model.onnx", "onnxruntime", "QDQ", "static"),
        ("onnxruntime", "model.onnx", "onnxruntime", "QDQ", "static"),
        ("onnxrt", "model.onnx", "onnxruntime", "QDQ", "static"),
        ("onnxrt_qlinearops", "model.onnx", "onnxruntime", "QOperator", "static"),
        ("onnxrt_qoperator", "model.onnx", "onnxruntime", "QOperator", "static"),
        ("onnxrt_integerops", "model.onnx", "onnxruntime", "QDQ", "dynamic"),
        ("NA", "model.onnx", "onnxruntime", "QDQ", "static"),
        ("pytorch_fx", "mine.py:build", "pytorch", "default", "static"),
        ("pytorch", "nets.small:build", "pytorch", "default", "static"),
    ],
)
def test_frameworks(load: Load, framework: str, path: str, backend: str, quant_format: str, approach: str) -> None:
    data = "quantization: {calibration: {dataloader: {dataset: Dummy}}}"
    job = load(f"model: {{framework: {framework}, path: '{path}'}}\n{data}").job()
    assert (job.model.framework, job.model.quant_format, job.approach) == (backend, quant_format, approach)
    assert job.model.path.endswith(path)


@pytest.mark.parametrize(("written", "level"), [("auto", "auto"), ("0", 0), ("O0", 0), ("1", 1), ("O1", 1)])
def test_quant_levels(load: Load, written: str, level: object) -> None:
    text = f"model: {{path: model.onnx}}\nquantization: {{approach: dynamic, quant_level: {written}}}"
    assert load(text).job().quant_level == level


@pytest.mark.parametrize("metric", ["Accuracy", "{Accuracy: {}}", "{Accuracy: }", "\n      Accuracy:"])
def test_a_metric_without_arguments_may_be_written_in_several_ways(load: Load, metric: str) -> None:
    text = f"{DYNAMIC}evaluation:\n  accuracy:\n    metric: {metric}\n    dataloader: {{dataset: Dummy}}\n"
    assert load(text).job().evaluation.metrics == (MetricSpec(ComponentSpec("Accuracy")),)


def test_several_metrics_with_weights_and_directions(load: Load) -> None:
    metrics = "{topk: 5, MSE: {compare_label: false}, weight: [0.8, 0.2], higher_is_better: [true, false]}"
    text = f"{DYNAMIC}evaluation: {{accuracy: {{multi_metrics: {metrics}, dataloader: {{dataset: Dummy}}}}}}"
    assert load(text).job().evaluation.metrics == (
        MetricSpec(ComponentSpec("topk", {"k": 5}), 0.8, True),
        MetricSpec(ComponentSpec("MSE", {"compare_label": False}), 0.2, False),
    )


def test_latency_may_be_set_in_one_place(load: Load) -> None:
    latency = "{batch_size: 16, cores_per_instance: 2, warmup: 1, iteration: 30}"
    job = load(f"{DYNAMIC}tuning: {{latency: {latency}}}").job()
    assert job.evaluation.performance == LatencySpec(16, 2, 1, 30)


def test_empty_sections_are_as_if_not_written(load: Load) -> None:
    empty = "tuning:\n  strategy:\n  exit_policy:\n  diagnosis:\nevaluation:\n  accuracy:\n  performance:\n"
    assert replace(load(DYNAMIC + empty).job(), source="") == replace(load(DYNAMIC).job(), source="")


def test_settings_of_a_strategy_come_from_all_their_keys(load: Load) -> None:
    strategy = load(SIGOPT).configuration.tuning.strategy
    assert strategy.name == "sigopt"
    assert strategy.kwargs() == {
        "sigopt_api_token": "SOME-TOKEN",
        "sigopt_project_id": "SOME-PROJECT",
        "sigopt_experiment_name": "some-experiment",
    }


def test_a_strategy_of_ones_own_is_named_with_its_file(load: Load, folder: Path) -> None:
    job = load(f"{DYNAMIC}tuning: {{strategy: {{name: abc, module: mine.py, strategy_kwargs: {{depth: 2}}}}}}").job()
    assert job.strategy == StrategySpec("abc", {"depth": 2}, str(folder / "mine.py"))


def test_what_has_no_effect_is_said_with_its_place(load: Load, folder: Path) -> None:
    warnings = load(TUNED + "evaluation: {accuracy: {configs: {kmp_blocktime: 1}}}").warnings
    assert [warning.split(": has no effect")[0] for warning in warnings] == [
        f"{folder}/cfg.yaml:14:35: evaluation.accuracy.configs.kmp_blocktime",
    ]
    assert load(CONSTRAINED).warnings == ()


def test_a_recipe_of_inc_that_is_not_here_may_stand_at_its_default(load: Load) -> None:
    loaded = load(DYNAMIC + "  recipes: {first_conv_or_matmul_quantization: true, gemm_to_matmul: true}")
    assert loaded.job().recipes == {"gemm_to_matmul": True}
    assert len(loaded.warnings) == 1
    with pytest.raises(ConfigError, match="this recipe of INC is not available"):
        load(DYNAMIC + "  recipes: {first_conv_or_matmul_quantization: false}")


def test_a_default_that_is_written_out_is_no_warning(load: Load) -> None:
    assert load("quantization: {calibration: {dataloader: {dataset: dummy, distributed: false}}}").warnings == ()


def test_tensorboard_is_a_tracker(load: Load) -> None:
    assert load(f"{DYNAMIC}tuning: {{tensorboard: true}}").job().trackers == (ComponentSpec("tensorboard"),)
    both = f"{DYNAMIC}tuning: {{tensorboard: true, trackers: {{tensorboard: {{log_dir: /tb}}, mlflow: {{}}}}}}"
    assert load(both).job().trackers == (ComponentSpec("tensorboard", {"log_dir": "/tb"}), ComponentSpec("mlflow"))


def test_what_to_diagnose(load: Load) -> None:
    given = "{diagnosis_after_tuning: true, op_list: [conv1, fc], iteration_list: [1, 3], inspect_type: weight}"
    job = load(f"{DYNAMIC}tuning: {{diagnosis: {given}}}").job()
    assert job.diagnosis == DiagnosisSpec(("conv1", "fc"), (1, 3), "weight")
    assert load(f"{DYNAMIC}tuning: {{diagnosis: {{op_list: [conv1]}}}}").job().diagnosis is None


def test_user_code_and_paths_are_relative_to_the_file(load: Load, folder: Path) -> None:
    (folder / "user").mkdir()
    (folder / "user" / "score.py").touch()
    text = f"{DYNAMIC}evaluation: {{accuracy: {{eval_func: '${{WHERE}}/score.py:f'}}}}"
    assert load(text, environ={"WHERE": "user"}).job().evaluation.eval_func == f"{folder}/user/score.py:f"
    assert (
        load(DYNAMIC + "evaluation: {accuracy: {eval_func: 'pkg.score:f'}}").job().evaluation.eval_func == "pkg.score:f"
    )


@pytest.mark.parametrize(
    ("environ", "found"), [({}, "model.onnx"), ({"M": ""}, "model.onnx"), ({"M": "score.py"}, "score.py")]
)
def test_a_variable_that_is_unset_or_empty_takes_its_default(
    load: Load, folder: Path, environ: dict[str, str], found: str
) -> None:
    text = "model: {framework: onnxruntime, path: '${M:-model.onnx}'}\nquantization: {approach: dynamic}"
    assert load(text, environ=environ).job().model.path == str(folder / found)


def test_a_download_need_not_be_there_yet(load: Load) -> None:
    text = DYNAMIC + "  calibration: {dataloader: {dataset: {CIFAR10: {root: c, download: true}}}}"
    assert load(text).job().calibration.dataloader is not None
    with pytest.raises(ConfigError, match="there is no"):
        load(text.replace("true", "false"))


def test_the_workspace_of_the_command_line_wins(load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    loaded = load(DYNAMIC + "tuning: {workspace: {path: from_file}}")
    assert loaded.job().workspace == str(folder / "from_file")
    assert loaded.job("typed").workspace == str(folder / "typed")


def test_overrides_replace_values_of_the_file(load: Load) -> None:
    text = f"{DYNAMIC}tuning: {{strategy: basic, exit_policy: {{max_trials: 3}}}}"
    overrides = (
        "tuning.strategy.strategy_kwargs.refine=2",
        "tuning.exit_policy.max_trials=9",
        "tuning.accuracy_criterion={absolute: 0.5}",
        'quantization.op_wise."conv.1".activation.dtype=fp32',
        "quantization.model_wise.weight.dtype=int8, fp32",
    )
    job = load(text, *overrides).job()
    assert job.strategy == StrategySpec("basic", {"refine": 2})
    assert job.exit_policy.max_trials == 9
    assert job.criterion == CriterionSpec("absolute", 0.5)
    assert [rule.pattern for rule in job.constraints] == ["", "conv.1"]
    assert job.constraints[0].weight == {"dtype": ("int8", "fp32")}
    assert load(text, "tuning.strategy.name=conservative").job().strategy.name == "conservative"


def test_an_override_of_an_alias_leaves_its_twin_alone(load: Load) -> None:
    text = "quantization: {op_wise: {a: &rule {weight: {dtype: int8}}, b: *rule}}"
    rules = load(text, "quantization.op_wise.a.weight.dtype=fp32").configuration.quantization.op_wise
    assert (rules["a"].weight.dtype, rules["b"].weight.dtype) == (("fp32",), ("int8",))


def test_merge_keys_and_names_that_yaml_takes_for_switches(load: Load) -> None:
    text = "quantization:\n  op_wise:\n    on: &r {weight: {dtype: int8}}\n    7: {<<: *r, activation: {dtype: fp32}}\n"
    rules = load(text).configuration.quantization.op_wise
    assert list(rules) == ["on", "7"]
    assert rules["7"].weight.dtype == ("int8",)


def test_positions_can_be_asked_for(load: Load, folder: Path) -> None:
    loaded = load("tuning:\n  strategy:\n    name: basic\n")
    assert loaded.position("tuning.strategy.name") == f"{folder}/cfg.yaml:3:5"
    assert loaded.position("tuning.strategy.module") == f"{folder}/cfg.yaml:2:3"


def test_a_transform_may_occur_twice_in_a_list(load: Load) -> None:
    transforms = "[{Resize: {size: 8}}, {Cast: float32}, {Resize: 4}]"
    text = f"{DYNAMIC}  calibration: {{dataloader: {{dataset: Dummy, transform: {transforms}}}}}"
    loader = load(text).job().calibration.dataloader
    assert isinstance(loader, DataloaderSpec)
    assert [transform.args for transform in loader.transforms] == [{"size": 8}, {"dtype": "float32"}, {"size": 4}]


def test_loading_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'onnx', 'onnxruntime', 'torch', 'mpi4py', 'scipy', 'PIL'}"
    code = f"import sys, distune.config.load; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
