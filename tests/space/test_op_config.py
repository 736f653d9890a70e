"""Tuning configs: what names them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from distune.space.op_config import TuningConfig
from tests import synthetic

PLAIN = synthetic.space().default()


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        replace(PLAIN, recipes=(("gemm_to_matmul", False), ("smooth_quant", True))),
        replace(PLAIN, sampling_size=0, parameters=(("lr", 0.5),)),
        replace(PLAIN, ops=(*PLAIN.ops, ('ö"\\', PLAIN.ops[0][1]))),
    ],
)
def test_the_hash_is_that_of_the_canonical_json_whatever_the_order_of_the_ops(config: TuningConfig) -> None:
    """Journals of before name configs by it."""
    canonical = json.dumps(config.to_json(), sort_keys=True, separators=(",", ":"))
    assert config.hash == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert replace(config, ops=tuple(reversed(config.ops))).hash == config.hash
