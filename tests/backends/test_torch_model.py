"""Loading PyTorch models: builders, weights, saved programs, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distune.backends.pytorch.model import load_module, read_weights
from distune.backends.pytorch.program import export_module
from distune.config.job import ModelSpec
from distune.errors import ModelError, UserCodeError
from tests.backends.torch_models import Attention, Branching, Recurrent, images, residual

BUILDER = f"{Path(__file__).parent / 'torch_models.py'}:Residual"


def spec(path: str = BUILDER, **fields: Any) -> ModelSpec:
    return ModelSpec("pytorch", path, quant_format="default", **fields)


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_a_builder_gets_its_weights(tmp_path: Path, form: str) -> None:
    module, file = residual(), tmp_path / f"weights.{form}"
    if form == "pt":
        torch.save(module.state_dict(), file)
    else:
        save_file(module.state_dict(), file)
    loaded = load_module(spec(weights=str(file)), [images(2)])
    x = torch.from_numpy(images(3))
    with torch.no_grad():
        assert torch.equal(loaded.module(x), module(x))
    assert not loaded.module.training


def test_weights_that_need_pickle_are_refused_unless_trusted(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(residual(), file)
    with pytest.raises(ModelError, match=r"need pickle.*trust_pickle: true"):
        read_weights(file)
    assert read_weights(file, trust_pickle=True).keys() == residual().state_dict().keys()


def test_wrong_weights_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such file"):
        load_module(spec(weights=str(tmp_path / "none.pt")), [images(2)])
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "part.pt")
    with pytest.raises(ModelError, match=r"(?s)part.pt do not fit.*Missing key"):
        load_module(spec(weights=str(tmp_path / "part.pt")), [images(2)])
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ModelError, match=r"text.pt"):
        read_weights(tmp_path / "text.pt")


def test_a_builder_that_raises_is_shown_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def build():\n    raise KeyError('no such thing')\n")
    with pytest.raises(UserCodeError, match="no such thing"):
        load_module(spec(f"{tmp_path / 'broken.py'}:build"), [images(2)])


def test_a_saved_program_keeps_its_names_and_axes(tmp_path: Path) -> None:
    exported = export_module(load_module(spec(), [images(2)]))
    file = tmp_path / "model.pt2"
    torch.export.save(exported.program, file)
    again = export_module(load_module(spec(str(file))))
    assert [op.name for op in again.ops] == [op.name for op in exported.ops]
    assert again.inputs == exported.inputs


def test_a_program_with_pickled_objects_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "evil.pt2"
    file.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match="cannot be read as a saved"):
        load_module(spec(str(file)))


def test_the_batch_and_the_length_of_sequences_are_dynamic() -> None:
    ids, mask = np.ones((1, 6), np.int64), np.ones((1, 6), np.int64)
    exported = export_module(load_module(ModelSpec("pytorch", live=Attention()), [{"ids": ids, "mask": mask}]))
    assert [info.shape for info in exported.inputs] == [(None, None), (None, None)]
    again = torch.ones((5, 3), dtype=torch.int64)
    assert exported.graph_module(again, again).shape == (5, 3, 8)
    image = export_module(load_module(spec(), [images(2)]))
    assert image.inputs[0].shape == (None, 3, 8, 8)
    assert image.graph_module(torch.from_numpy(images(1))).shape == (1, 5)


def test_ops_are_named_after_modules_and_functions() -> None:
    names = {op.name: op.op_type for op in export_module(load_module(spec(), [images(2)])).ops}
    assert names == {
        "conv1": "Conv2d",
        "bn1": "BatchNorm",
        "relu": "ReLU",
        "conv2": "Conv2d",
        "add": "add",
        "relu#1": "ReLU",
        "pool": "MaxPool2d",
        "mean": "mean",
        "fc": "Linear",
    }
    assert "lstm" in {
        op.name
        for op in export_module(
            load_module(ModelSpec("pytorch", live=Recurrent()), [np.ones((2, 3, 4), np.float32)])
        ).ops
    }


def test_control_flow_on_values_is_refused_with_torchs_reason_and_the_module() -> None:
    loaded = load_module(ModelSpec("pytorch", live=Branching()), [np.ones((2, 3), np.float32)])
    with pytest.raises(ModelError, match=r"in module 'inner' \(Decision\)") as refused:
        export_module(loaded)
    assert "data-dependent" in str(refused.value) or "guard" in str(refused.value)


def test_inputs_that_forward_has_not_are_named() -> None:
    with pytest.raises(ModelError, match=r"no parameter 'picture'; it has: image"):
        load_module(spec(), [{"picture": images(2)}])
    with pytest.raises(ModelError, match="nothing to export it with"):
        load_module(spec())


def test_example_inputs_may_be_described() -> None:
    described = {"image": {"shape": [2, 3, 16, 16], "dtype": "float32", "dynamic": [0, 2, 3]}}
    loaded = load_module(spec(example_inputs=described))
    assert loaded.dynamic_axes == {"image": (0, 2, 3)}
