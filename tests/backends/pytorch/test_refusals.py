"""What a user is told of a module that cannot be quantized, by the real command line (about 50 s)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")

from distune import quantization  # noqa: E402
from distune.config import PostTrainingQuantConfig, set_workspace  # noqa: E402
from distune.errors import UserCodeError  # noqa: E402
from tests.backends.torch_models import images, residual  # noqa: E402

PACKAGE = Path(quantization.__file__).parent

MODULES = """\
import torch
from torch import library, nn


@library.custom_op("refused::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def between(self, x):
        return x

    def forward(self, image):
        return self.fc(self.between(self.conv(image)).mean(dim=(2, 3)))


class Decides(Plain):
    def between(self, x):
        if x.sum() > 0:
            x = x * 2
        return x


class Custom(Plain):
    def between(self, x):
        return torch.ops.refused.twice(x)


class Unregistered(Plain):
    def between(self, x):
        return torch.ops.refused.nobody_made_it(x)


class OtherShape(Plain):
    def between(self, x):
        return x[:, :3]


def score(model):
    raise ValueError("planted in eval_func")
"""


def run(folder: Path, model: dict[str, Any], eval_func: str = "") -> tuple[int, str]:
    """``distune run`` with a model of ``MODULES``; the exit code and what it said."""
    (folder / "modules.py").write_text(MODULES)
    data = {"images": images(16), "labels": np.zeros(16, np.int64)}
    np.savez(folder / "data.npz", **data)  # type: ignore[arg-type]
    loader = {"batch_size": 8, "dataset": {"Npz": {"path": "data.npz", "inputs": "images", "label": "labels"}}}
    accuracy: dict[str, Any] = {"metric": {"topk": 1}, "dataloader": loader}
    config = {
        "model": {"framework": "pytorch", **model},
        "quantization": {"calibration": {"sampling_size": 16, "dataloader": loader}},
        "evaluation": {"accuracy": {"eval_func": eval_func} if eval_func else accuracy},
    }
    (folder / "cfg.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "distune", "run", "cfg.yaml", "--workspace", "ws"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert str(PACKAGE) not in done.stderr, f"a traceback of ours:\n{done.stderr}"
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        ("Decides", ["cannot read Decides, in its own forward", "if x.sum() > 0:", "torch.where", "partition: auto"]),
        ("Custom", ["cannot read Custom", "torch.ops.refused.twice(x)", "register_fake", "partition: auto"]),
    ],
)
def test_what_torch_export_cannot_read_is_said_with_the_line_and_the_way_out(
    tmp_path: Path, builder: str, expected: list[str]
) -> None:
    code, said = run(tmp_path, {"path": f"modules.py:{builder}"})
    assert code == 2
    assert all(part in said for part in [*expected, "modules.py:"]), said
    assert "Traceback" not in said
    assert "TORCH_LOGS" not in said, "torch's hints to its own developers"


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        ("Unregistered", "has no attribute 'nobody_made_it'"),
        ("OtherShape", "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_a_module_that_does_not_run_is_no_matter_of_exporting(tmp_path: Path, builder: str, expected: str) -> None:
    code, said = run(tmp_path, {"path": f"modules.py:{builder}"})
    assert code == 2
    assert f"{builder}.forward, given the example inputs (image: float32 [8, 3, 8, 8]), raised" in said
    assert expected in said
    assert "in between" in said or "in forward" in said, "the user's own traceback"
    assert "partition" not in said, "no advice that would not help"


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    code, said = run(tmp_path, {"path": "modules.py:Plain", "weights": "none.pt"})
    assert (code, "Traceback" in said) == (2, False)
    assert "cfg.yaml" in said
    assert "model.weights: there is no" in said
    torch.save({"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.zeros(4)}, tmp_path / "part.pt")
    code, said = run(tmp_path, {"path": "modules.py:Plain", "weights": "part.pt"})
    assert (code, "Traceback" in said) == (2, False)
    assert 'Missing key(s) in state_dict: "fc.weight", "fc.bias"' in said


def test_a_saved_program_whose_custom_op_is_not_there_says_which(tmp_path: Path) -> None:
    registered = """
@twice.register_fake
def _(x):
    return torch.empty_like(x)
"""
    (tmp_path / "save.py").write_text(
        MODULES + registered + "shape = torch.zeros(2, 3, 8, 8)\n"
        "torch.export.save(torch.export.export(Custom().eval(), (shape,)), 'custom.pt2')\n"
    )
    subprocess.run([sys.executable, "save.py"], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    code, said = run(tmp_path, {"path": "custom.pt2"})
    assert (code, "Traceback" in said) == (2, False)
    assert "calls the custom op torch.ops.refused.twice" in said


def test_an_eval_func_that_raises_is_shown_with_the_users_lines_alone(tmp_path: Path) -> None:
    code, said = run(tmp_path, {"path": "modules.py:Plain"}, "modules.py:score")
    assert code == 2
    assert "raised ValueError: planted in eval_func" in said
    assert "in score" in said


def test_from_python_the_error_of_an_eval_func_carries_the_users_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    set_workspace(str(tmp_path / "ws"))

    def fails(model: Any) -> float:
        raise ValueError("planted in eval_func")

    with pytest.raises(UserCodeError, match=r"(?s)planted in eval_func.*in fails") as raised:
        quantization.fit(
            residual(), PostTrainingQuantConfig(), calib_dataloader=[(images(8), np.zeros(8))], eval_func=fails
        )
    assert str(PACKAGE) not in str(raised.value)
