"""``excluded_precisions`` reaches the space from YAML and from Python: no op may take such a precision."""

from __future__ import annotations

from pathlib import Path

import onnx

from distune.api.names import known_names
from distune.backends.base import backend_class
from distune.config.conf import PostTrainingQuantConfig
from distune.config.conf_to_job import job_of
from distune.config.job import TuningJob
from distune.config.load import load_config
from distune.space.tuning_space import TuningSpace, build_space
from distune.trial.inspection import inspect
from tests.backends.onnx_models import transformer_model

FP16_ALLOWED = {"MatMul": {"weight": {"dtype": ["int8", "fp16", "fp32"]}}}


def space_of(job: TuningJob) -> TuningSpace:
    backend = backend_class("onnxruntime")(job)
    found = inspect(job, backend, None, None, 1)
    return build_space(found.capability, job.constraints, job.approach, job.recipes, (1,))


def yaml_job(folder: Path, more: str = "") -> TuningJob:
    onnx.save(transformer_model(1), folder / "model.onnx")
    (folder / "job.yaml").write_text(
        "model: {name: m, framework: onnxruntime, path: model.onnx}\n"
        "quantization:\n  approach: post_training_dynamic_quant\n"
        f"  optype_wise: {FP16_ALLOWED}\n{more}"
    )
    return load_config(folder / "job.yaml", [], known_names()).job()


def test_a_file_that_excludes_fp16_has_none_in_its_space(tmp_path: Path) -> None:
    assert space_of(yaml_job(tmp_path)).precisions == ("fp16", "fp32")
    job = yaml_job(tmp_path, "  excluded_precisions: fp16\n")
    assert job.excluded_precisions == ("fp16",)
    assert space_of(job).precisions == ("fp32",)


def test_the_python_class_does_the_same(tmp_path: Path) -> None:
    yaml = yaml_job(tmp_path)
    conf = PostTrainingQuantConfig(
        approach="dynamic", op_type_dict=FP16_ALLOWED, excluded_precisions=["bf16", "fp16"], quant_level=1
    )
    job = job_of(conf, yaml.model)
    assert job.excluded_precisions == ("bf16", "fp16")
    assert space_of(job).precisions == ("fp32",)
