"""Hutchinson's estimate against exact Hessians, and what makes it the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from distune.backends.pytorch.hessian import (  # noqa: E402
    HutchinsonSettings,
    hessian_traces,
    loss_of,
    perturbation,
    resolve_loss,
)
from distune.errors import TrialError, UsageError, UserCodeError  # noqa: E402


class Net(nn.Module):
    """Two layers, and a weight that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(3)
    return Net().eval()


def batch(rows: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((rows, 5)).astype(np.float32), rng.integers(0, 3, rows).astype(np.int32)


def closure(net: nn.Module) -> Callable[[], torch.Tensor]:
    inputs, labels = batch()
    return loss_of(net, (torch.from_numpy(inputs),), labels, functional.cross_entropy)


def exact(net: Net, name: str) -> float:
    inputs, labels = batch()
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels).long()
    weight = dict(net.named_parameters())[name]

    def loss(value: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(net, {name: value}, (x,))
        return functional.cross_entropy(out, y)

    hessian = torch.autograd.functional.hessian(loss, weight.detach())
    return float(hessian.reshape(weight.numel(), weight.numel()).trace())


def weights(net: Net) -> dict[str, torch.Tensor]:
    return {name: value for name, value in net.named_parameters() if name.endswith("weight")}


def test_the_estimate_lies_within_its_own_error_of_the_exact_trace(net: Net) -> None:
    found = hessian_traces(closure(net), weights(net), 7, 0, HutchinsonSettings(relative_error=0.05, most=1000))
    for name in ("first.weight", "second.weight"):
        true = exact(net, name)
        assert abs(found[name].value - true) < 4 * found[name].error
        assert found[name].error < 0.055 * abs(true)
    assert found["idle.weight"].value == 0.0


def test_it_stops_at_the_error_that_was_asked_for(net: Net) -> None:
    coarse = hessian_traces(closure(net), weights(net), 7, 0, HutchinsonSettings(0.3, most=1000))["first.weight"]
    fine = hessian_traces(closure(net), weights(net), 7, 0, HutchinsonSettings(0.06, most=1000))["first.weight"]
    assert 8 <= coarse.vectors < fine.vectors < 1000
    assert fine.error <= 0.06 * abs(fine.value)


def test_vectors_depend_on_seed_and_batch_and_on_nothing_else(net: Net) -> None:
    def traces(seed: int, number: int) -> dict[str, float]:
        torch.rand(7)  # the global generator has no say
        return {name: trace.value for name, trace in hessian_traces(closure(net), weights(net), seed, number).items()}

    assert traces(1, 0) == traces(1, 0)
    alone = hessian_traces(closure(net), {"first.weight": net.first.weight}, 1, 0)
    assert alone["first.weight"].value == traces(1, 0)["first.weight"]
    assert len({traces(*which)["first.weight"] for which in ((1, 0), (1, 1), (2, 0))}) == 3


def test_parameters_are_left_as_they_were(net: Net) -> None:
    net.first.weight.requires_grad_(False)
    hessian_traces(closure(net), weights(net), 1, 0)
    assert not net.first.weight.requires_grad
    assert net.second.weight.requires_grad
    assert net.second.weight.grad is None


def test_fused_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    inputs = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    labels = np.zeros((2, 5, 8), np.float32)
    loss = loss_of(layer, (torch.from_numpy(inputs),), labels, functional.mse_loss)
    found = hessian_traces(loss, {"attention": layer.self_attn.in_proj_weight, "ffn": layer.linear1.weight}, 1, 0)
    assert all(np.isfinite(trace.value) and trace.vectors for trace in found.values())


def test_the_perturbation_is_the_mean_squared_error() -> None:
    weight = np.array([[1.0, 2.0]], np.float32)
    assert perturbation(weight, np.array([[1.5, 2.0]], np.float32)) == pytest.approx(0.125)


def test_the_loss_may_be_a_function_a_class_or_a_name(tmp_path: Path) -> None:
    file = tmp_path / "losses.py"
    file.write_text("def squared(output, target):\n    return (output - target).square().mean()\n")
    one, zero = torch.ones(3), torch.zeros(3)
    assert resolve_loss(f"{file}:squared")(one, zero).item() == 1.0
    assert resolve_loss("torch.nn:MSELoss")(one, zero).item() == 1.0
    assert resolve_loss(functional.mse_loss) is functional.mse_loss
    with pytest.raises(UsageError, match="hawq_v2_loss"):
        resolve_loss(f"{file}:cubed")


def test_what_the_loss_does_wrong_is_said(net: Net) -> None:
    inputs, labels = batch()
    feed = (torch.from_numpy(inputs),)
    with pytest.raises(UsageError, match="carry none"):
        loss_of(net, feed, None, functional.cross_entropy)
    with pytest.raises(UsageError, match=r"shape \[16\]"):
        loss_of(net, feed, labels, lambda o, t: functional.cross_entropy(o, t, reduction="none"))()
    with pytest.raises(UserCodeError, match="no such thing"):
        loss_of(net, feed, labels, _raising)()
    nan = loss_of(net, feed, labels, lambda o, t: o.sum() * float("nan"))
    with pytest.raises(TrialError, match="batch 4 is nan"):
        hessian_traces(nan, weights(net), 1, 4)
    detached = loss_of(net, feed, labels, lambda o, t: o.detach().sum())
    with pytest.raises(TrialError, match="no gradient"):
        hessian_traces(detached, weights(net), 1, 0)


def _raising(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    raise KeyError("no such thing")
