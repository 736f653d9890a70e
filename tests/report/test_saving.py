"""Where the files of a model go, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.errors import UsageError
from distune.report.saving import named_after, write_model


def test_what_belongs_to_a_module_is_named_after_it() -> None:
    files = {"model.pt2": b"program", "state.pt": b"weights"}
    assert named_after(Path("/to/int8.pt2"), files) == {
        Path("/to/int8.pt2"): b"program",
        Path("/to/int8.state.pt"): b"weights",
    }


def test_the_model_is_there_only_when_all_it_needs_is(tmp_path: Path) -> None:
    (tmp_path / "a.onnx.data").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*a\.onnx\.data"):
        write_model({tmp_path / "a.onnx": b"graph", tmp_path / "a.onnx.data": b"weights"}, ())
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx.data"]
