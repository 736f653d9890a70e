"""Calibration by a function that calls the module (about 25 s)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from distune import quantization  # noqa: E402
from distune.backends.pytorch.calib_func import recorded_batches  # noqa: E402
from distune.config import PostTrainingQuantConfig, set_workspace  # noqa: E402
from distune.errors import UsageError, UserCodeError  # noqa: E402
from tests.backends.torch_models import images, residual  # noqa: E402


def calls(model: Any) -> None:
    for seed in range(4):
        model(torch.from_numpy(images(8, seed)))


def test_it_gives_the_ranges_of_the_same_batches_from_a_dataloader(tmp_path: Path) -> None:
    found = []
    for name, given in (
        ("func", {"calib_func": calls}),
        ("loader", {"calib_dataloader": [(images(8, seed), None) for seed in range(4)]}),
    ):
        set_workspace(str(tmp_path / name))
        conf = PostTrainingQuantConfig(calibration_sampling_size=[24])
        result = quantization.fit(residual(), conf, quiet=True, isolation="none", **given)  # type: ignore[arg-type]
        assert result.best_effort is not None
        found.append(result.best_effort.saved.deploy["ranges"])
    assert found[0] == found[1]


def test_only_as_many_calls_are_kept_as_the_samples_that_are_wanted() -> None:
    assert [len(batch["image"]) for batch, _ in recorded_batches(residual(), calls, 20)] == [8, 8, 8]


def test_it_runs_in_eval_mode_and_the_module_keeps_its_own() -> None:
    module, seen = residual().train(), set()
    recorded_batches(module, lambda model: (seen.add(model.bn1.training), calls(model)), 20)
    assert seen == {False}
    assert all(each.training for each in module.modules())


def test_what_it_does_wrong_is_said() -> None:
    conf = PostTrainingQuantConfig()
    with pytest.raises(UsageError, match="never called the model"):
        quantization.fit(residual(), conf, calib_func=lambda model: None)

    def fails(model: Any) -> None:
        raise KeyError("no such column")

    with pytest.raises(UserCodeError, match=r"(?s)calib_func raised KeyError.*in fails"):
        quantization.fit(residual(), conf, calib_func=fails)
    with pytest.raises(UsageError, match="calib_func is a str"):
        quantization.fit(residual(), conf, calib_func="calls")  # type: ignore[arg-type]
    data = [(images(8), np.zeros(8))]
    unused = pytest.warns(UserWarning, match="calib_func has no effect beside calib_dataloader")
    with unused, pytest.raises(UserCodeError):
        quantization.fit(residual(), conf, calib_dataloader=data, calib_func=calls, eval_func=fails)
