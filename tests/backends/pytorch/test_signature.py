"""Modules whose forward takes ``*args``, or something by keyword only (about 3 s)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from distune.backends.pytorch.model import load_module  # noqa: E402
from distune.backends.pytorch.program import export_module  # noqa: E402
from distune.config.job import ModelSpec  # noqa: E402
from distune.errors import ModelError  # noqa: E402
from tests.backends.torch_models import backend, calibrated  # noqa: E402


class AnyNumber(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 3)

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(args[0] + sum(args[1:]))
        return out


class AndMore(AnyNumber):
    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return super().forward(x, *rest)


class ByKeyword(AnyNumber):
    def forward(self, *, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class OneByKeyword(AnyNumber):
    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(x, mask)


class MaybeByKeyword(AnyNumber):
    def forward(self, x: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x) if mask is None else super().forward(x, mask)


def tensors(count: int, batch: int = 4) -> tuple[np.ndarray, ...]:
    return tuple(np.random.default_rng(1).normal(size=(count, batch, 6)).astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (AnyNumber, ["args_0"]),
        (AnyNumber, ["args_0", "args_1", "args_2"]),
        (AndMore, ["x"]),
        (AndMore, ["x", "rest_0", "rest_1"]),
    ],
)
def test_what_goes_into_args_is_quantized_and_saved(kind: type[AnyNumber], names: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, inputs = kind().eval(), tensors(len(names))
    made = backend(module, inputs if len(names) > 1 else inputs[0])
    assert [info.name for info in made.facts().inputs] == names
    other = tensors(len(names), batch=7)
    feed = dict(zip(names, other, strict=True))
    config = calibrated(made, [(0, feed)])
    with torch.no_grad():
        expected = module(*map(torch.from_numpy, other)).numpy()
    np.testing.assert_array_equal(made.load(None).predict(feed)[0], expected)
    np.testing.assert_allclose(made.load(config).predict(feed)[0], expected, atol=0.1)
    (tmp_path / "model.pt2").write_bytes(made.export(config).files["model.pt2"])
    saved = load_module(ModelSpec("pytorch", str(tmp_path / "model.pt2"), quant_format="default"))
    assert saved.input_names == tuple(names)
    with torch.no_grad():
        again = export_module(saved).graph_module(*map(torch.from_numpy, other)).numpy()
    np.testing.assert_allclose(again, expected, atol=0.1)


def test_what_goes_into_args_may_be_given_by_name() -> None:
    given = {"x": {"shape": [2, 6], "dynamic": [0]}, "rest_0": {"shape": [2, 6], "dynamic": [0]}}
    exported = export_module(load_module(ModelSpec("pytorch", live=AndMore(), example_inputs=given)))
    assert [(info.name, info.shape) for info in exported.inputs] == [("x", (None, 6)), ("rest_0", (None, 6))]
    with pytest.raises(ModelError, match=r"no parameter 'other'; it has: x, rest_0, rest_1, …"):
        load_module(ModelSpec("pytorch", live=AndMore()), [{"x": tensors(1)[0], "other": tensors(1)[0]}])


def test_what_is_taken_by_keyword_only_is_said() -> None:
    (x,) = tensors(1)
    for module, name in ((ByKeyword(), "x"), (OneByKeyword(), "mask")):
        with pytest.raises(
            ModelError, match=rf"{type(module).__name__}.forward takes {name} by keyword only.*drop the"
        ):
            load_module(ModelSpec("pytorch", live=module), [{name: x}])
    with pytest.raises(ModelError, match=r"takes 'mask' by keyword only.*drop the \* before 'mask'"):
        load_module(ModelSpec("pytorch", live=MaybeByKeyword()), [{"x": x, "mask": x}])
    exported = export_module(load_module(ModelSpec("pytorch", live=MaybeByKeyword()), [x]))
    assert [info.name for info in exported.inputs] == ["x"]
