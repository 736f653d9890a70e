"""Modules that torch.export cannot read as a whole: their parts are tuned, the rest is the user's code (about 60 s)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from distune import quantization  # noqa: E402
from distune.backends.pytorch.backend import PyTorchBackend  # noqa: E402
from distune.backends.pytorch.deployment import load, load_parts  # noqa: E402
from distune.config.job import CalibrationSpec, ModelSpec, TuningJob  # noqa: E402
from distune.errors import ModelError, UsageError  # noqa: E402
from distune.report.result import RunResult  # noqa: E402
from tests.backends.torch_models import calibrated, residual  # noqa: E402

ROOT = Path(quantization.__file__).parents[1]

MODULE = """\
import torch
from torch import nn


class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, image):
        return torch.relu(self.norm(self.conv(image)))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.weigh = nn.Linear(8, 1)

    def forward(self, x):
        if self.weigh(x.mean(dim=(2, 3))).sum() > 1e9:
            raise ValueError("never")
        return x


class Looping(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.block = Stem(), Gate(), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.small, self.large = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, image):
        x, steps = self.gate(self.stem(image)), 0
        while x.mean() < 2 and steps < 2:
            x, steps = x + self.block(x), steps + 1
        head = self.large if x.max() > 0.5 else self.small
        return {"logits": head(x.mean(dim=(2, 3)))}


def build():
    torch.manual_seed(3)
    made = Looping().eval()
    with torch.no_grad():
        made.stem.norm.running_var.uniform_(0.5, 2)
        made.large.weight.mul_(20)
    return made
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the module, its data beside it: labels are what the fp32 module says."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "looping.py").write_text(MODULE)
    data = np.random.default_rng(0).normal(size=(120, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        labels = built(folder)(torch.from_numpy(data))["logits"].argmax(1).numpy()
    np.savez(folder / "data.npz", images=data, labels=labels)
    return folder


def built(folder: Path) -> nn.Module:
    spec = spec_from_file_location("looping", folder / "looping.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    made: nn.Module = module.build()
    return made


def backend(module: nn.Module, data: Any, **fields: Any) -> PyTorchBackend:
    spec = ModelSpec("pytorch", live=module, quant_format="default", **fields)
    return PyTorchBackend(TuningJob(spec, calibration=CalibrationSpec([(data, None)])))


def test_the_parts_of_a_module_with_control_flow_are_tuned_and_judged_as_compiled(source: Path) -> None:
    loader = {"batch_size": 40, "dataset": {"Npz": {"path": "data.npz", "inputs": "images", "label": "labels"}}}
    config = {
        "model": {"framework": "pytorch", "path": "looping.py:build", "partition": "auto"},
        "quantization": {"calibration": {"sampling_size": 40, "dataloader": loader}},
        "evaluation": {"accuracy": {"metric": {"topk": 1}, "dataloader": loader}},
        "tuning": {"accuracy_criterion": {"relative": 0.1}, "refine_trials": 0},
    }
    (source / "cfg.yaml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def distune(*words: str) -> str:
        command = [sys.executable, "-m", "distune", *words]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    planned = distune("plan", "cfg.yaml")
    assert "stays eager: torch.export cannot read it" in planned

    distune("run", "cfg.yaml", "--workspace", "ws")
    result = RunResult.from_json((source / "ws" / "result.json").read_text())
    assert result.outcome == "met"
    assert result.best is not None
    assert result.best.ops_executed_int8 == result.best.ops_total - len(result.best.fallback_ops) > 0
    assert result.best.latency is not None, "timed as compiled"

    content = (source / "ws" / "best" / "model.pt2").read_bytes()
    with pytest.raises(ModelError, match="load_parts"):
        load(content)
    data = np.load(source / "data.npz")
    module = built(source).train()
    deployed = load_parts(module, content)
    assert all(each.training for each in module.modules())
    with torch.no_grad():
        agree = (deployed(torch.from_numpy(data["images"]))["logits"].argmax(1).numpy() == data["labels"]).mean()
    assert agree >= 0.9

    config_file = source / "ws" / "best" / "tuning_config.yaml"
    again = source / "again.pt2"
    distune("export", str(config_file), "--model", "looping.py:build", "--output", str(again))
    renewed = load_parts(built(source), again.read_bytes())
    with torch.no_grad():
        first, second = (each(torch.from_numpy(data["images"][:40]))["logits"] for each in (deployed, renewed))
    assert torch.equal(first, second)


def test_parts_called_in_a_loop_and_by_chance_have_the_ranges_of_every_call(source: Path) -> None:
    data = np.load(source / "data.npz")["images"]
    made = backend(built(source), data[:40], partition="auto")
    try:
        capability = made.facts().capability
        names = [op.name for op in capability.ops]
        assert names[:2] == ["stem.conv", "gate.weigh"]
        assert {"block.0", "large"} <= set(names)
        assert "small" not in names, "the batches that were looked at never took that way"
        left = {path: why for path, _, why in capability.excluded}
        assert "data-dependent" in left["gate"]
        assert "not called" in left["small"]
        config = calibrated(made, [(0, {"image": data[:40]})])
        fp32, judged, deployed = made.load(None), made.load(config), made.load_deployed(config)
        with torch.no_grad():
            expected = built(source)(torch.from_numpy(data[:30]))["logits"].numpy()
        feed = {"image": data[:30]}
        np.testing.assert_allclose(fp32.predict(feed)[0], expected, atol=1e-4)
        np.testing.assert_allclose(judged.predict(feed)[0], expected, atol=0.1 * np.abs(expected).max())
        np.testing.assert_allclose(deployed.predict(feed)[0], judged.predict(feed)[0], atol=0.05)
        scores = made.probe("op_mse", config, (), [feed], {})
        assert all(score > 0 for score in scores.values())
    finally:
        made.close()


def test_excluded_submodules_stay_eager_and_the_rest_is_quantized() -> None:
    data = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    made = backend(residual(), data, exclude=("conv2",))
    try:
        capability = made.facts().capability
        assert [op.name for op in capability.ops] == ["conv1", "fc"]
        assert ("conv2", "Conv2d", "stays eager: left out by model.exclude") in capability.excluded
    finally:
        made.close()
    with pytest.raises(UsageError, match=r"model.exclude: 'conv3' matches no submodule of Residual; it has: conv1"):
        backend(residual(), data, exclude=("conv3",))


def test_where_no_part_can_be_exported_every_reason_is_said() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale if x.sum() > 0 else x

    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Deciding()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x)
            return out

    with pytest.raises(ModelError, match=r"(?s)no submodule of Only .*inner \(Deciding\): torch.export cannot read it"):
        backend(Only(), np.ones((2, 3), np.float32), partition="auto")
