"""A folder with the files that configurations refer to, and the names that a small registry would know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distune.config.known import KnownNames
from distune.config.load import LoadedConfig, load_config

KNOWN = KnownNames(
    strategies={"basic": frozenset({"refine"}), "conservative": frozenset()},
    datasets={
        "Npz": frozenset({"path", "inputs", "label"}),
        "CIFAR10": frozenset({"root", "train", "download"}),
        "Dummy": None,
    },
    transforms={
        "Resize": frozenset({"size"}),
        "CenterCrop": frozenset({"size"}),
        "Cast": frozenset({"dtype"}),
        "LabelShift": frozenset({"label_shift"}),
    },
    filters={"LabelBalance": frozenset({"size"})},
    metrics={"topk": frozenset({"k"}), "Accuracy": frozenset({"compare_label"}), "MSE": frozenset({"compare_label"})},
    recipes={"gemm_to_matmul": None, "fast_bias_correction": None},
)

Load = Callable[..., LoadedConfig]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, data and user code, all empty: the configuration only looks whether they exist."""
    for name in ("model.onnx", "calib.npz", "eval.npz", "score.py", "mine.py"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Load:
    """``load(text, *overrides)`` writes ``cfg.yaml`` and loads it."""

    def load_text(text: str, *overrides: str, environ: dict[str, str] | None = None) -> LoadedConfig:
        (folder / "cfg.yaml").write_text(text, encoding="utf-8")
        return load_config(folder / "cfg.yaml", overrides, KNOWN, environ or {})

    return load_text
