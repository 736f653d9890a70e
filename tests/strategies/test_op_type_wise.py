"""The op-type-wise stage tries what is most worth trying first, and never the same config twice."""

from __future__ import annotations

from itertools import islice

from distune.space.capability import Capability, ModeOptions, OpInfo
from distune.space.op_config import FP32
from distune.space.tuning_space import build_space
from distune.strategies.op_type_wise import op_type_wise, op_type_wise_total
from tests import synthetic


def test_changes_of_every_type_at_once_come_before_those_of_one_type() -> None:
    space = synthetic.space()
    labels = [candidate.label for candidate in op_type_wise(space, space.default())]
    assert labels[:4] == [
        "activation algorithm percentile",
        "activation scheme sym",
        "weight granularity per_tensor",
        "activation dtype int8",
    ]
    assert labels[4].startswith("Conv: ")


def test_all_configs_of_the_product_come_once_and_the_base_not_at_all() -> None:
    space = synthetic.space()
    hashes = [candidate.config.hash for candidate in op_type_wise(space, space.default())]
    options = len(synthetic.CONV) - 1
    assert len(hashes) == len(set(hashes)) == options * options - 1
    assert space.default().hash not in hashes


def test_groups_in_floating_point_stay_there() -> None:
    space = synthetic.space()
    base = space.fallback(space.default(), ["conv1"])
    for candidate in islice(op_type_wise(space, base), 10):
        assert candidate.config.by_name["conv1"] == FP32


def test_groups_of_one_type_with_unlike_options_each_take_the_nearest() -> None:
    weightless = (*ModeOptions("static", synthetic.ACTIVATION).expand(), FP32)
    ops = (*synthetic.capability(1).ops, OpInfo("attention", "MatMul", weightless, "attention"))
    space = build_space(Capability(ops), (), "static", {}, (100,))
    first = next(op_type_wise(space, space.default()))
    for name in ("conv0", "matmul0", "attention"):
        activation = first.config.by_name[name].activation
        assert activation is not None
        assert activation.algorithm == "percentile"
    assert first.config.by_name["attention"].weight is None


def test_counting_stops_at_the_limit() -> None:
    space = synthetic.space()
    assert op_type_wise_total(space, space.default(), 5) == 6
