"""The weight-only algorithms against independent references: arithmetic by hand, closed forms, ONNX Runtime."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from distune.backends.second_moments import SecondMoments
from distune.backends.weight_only.awq import AwqSettings, awq, output_error
from distune.backends.weight_only.gptq import GptqSettings, gptq
from distune.backends.weight_only.grouped import WeightFormat
from distune.backends.weight_only.hqq import hqq
from distune.backends.weight_only.quantize import quantize_weight, settings
from distune.backends.weight_only.rtn import rtn
from distune.errors import TrialError
from distune.space.op_config import TensorConfig

Scheme = Literal["sym", "asym"]

PLAIN = GptqSettings(actorder=False, mse=False)


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((96, 20)).astype(np.float32)


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    """Correlated inputs [500, 96], some channels ten times as large as others."""
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((500, 96)) @ (np.eye(96) + 0.2 * rng.standard_normal((96, 96)))
    return np.asarray(mixed * np.exp(rng.standard_normal(96)))


def moments_of(inputs: np.ndarray) -> SecondMoments:
    out = SecondMoments(inputs.shape[1])
    out.add(inputs)
    return out


def test_symmetric_scales_by_hand() -> None:
    column = np.array([[1.0], [-2.0], [0.5], [4.0], [-3.0], [0.26]], np.float32)
    found = rtn(column, WeightFormat(4, 3, "sym"))
    # Groups (1, -2, 0.5) and (4, -3, 0.26): the largest magnitude is level 0, the middle level is 8.
    np.testing.assert_array_equal(found.scales[:, 0], [-2.0 / -8, 4.0 / -8])
    np.testing.assert_array_equal(found.zero_points[:, 0], [8, 8])
    np.testing.assert_array_equal(found.integers[:, 0], [12, 0, 10, 0, 14, 7])
    np.testing.assert_allclose(found.dequantized()[:, 0], [1.0, -2.0, 0.5, 4.0, -3.0, 0.5])


def test_asymmetric_zero_points_by_hand() -> None:
    column = np.array([[-1.0], [2.0], [0.4], [3.0], [6.0], [4.5]], np.float32)
    found = rtn(column, WeightFormat(4, 3, "asym"))
    # -1 ... 2 in 15 steps of 0.2: zero is level 5. 3 ... 6 is widened to 0 ... 6 in steps of 0.4.
    np.testing.assert_allclose(found.scales[:, 0], [0.2, 0.4])
    np.testing.assert_array_equal(found.zero_points[:, 0], [5, 0])
    np.testing.assert_array_equal(found.integers[:, 0], [0, 15, 7, 8, 15, 11])


@pytest.mark.parametrize("scheme", ["sym", "asym"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [16, 40, -1, 1024])
def test_rounding_is_to_the_nearest_level(weight: np.ndarray, bits: int, group_size: int, scheme: Scheme) -> None:
    found = rtn(weight, WeightFormat(bits, group_size, scheme))
    size = 96 if group_size in (-1, 1024) else group_size
    assert found.scales.shape == (-(-96 // size), 20)
    assert found.integers.max() <= 2**bits - 1
    scale = np.abs(found.scales)[np.arange(96) // size]
    saturated = (found.integers == 0) | (found.integers == 2**bits - 1)
    error = np.abs(found.dequantized() - weight)
    assert (error[~saturated] <= 0.5001 * scale[~saturated]).all()
    # The symmetric grid has one level less on one side, the asymmetric zero point is rounded.
    assert (error <= 1.0001 * scale).all()


def test_formats_that_do_not_exist_are_refused() -> None:
    for bits, group_size, scheme in ((1, 32, "sym"), (9, 32, "sym"), (4, 0, "sym"), (4, 32, "mid")):
        with pytest.raises(TrialError):
            WeightFormat(bits, group_size, scheme)  # type: ignore[arg-type]
    with pytest.raises(TrialError, match="asym"):
        hqq(np.ones((4, 4), np.float32), WeightFormat(4, 32, "sym"))


def closed_form(weight: np.ndarray, hessian: np.ndarray, scales: np.ndarray, zeros: np.ndarray, top: int) -> np.ndarray:
    """Optimal brain quantization, row after row, each step by solving the least-squares problem anew.

    After rows up to r are fixed, the others are what minimises ``trace(D^T H D)``, by its normal equations.
    """
    fixed = np.zeros_like(weight)
    rest = weight.copy()
    for row in range(len(weight)):
        levels = np.clip(np.rint(rest[row] / scales + zeros), 0, top)
        fixed[row] = (levels - zeros) * scales
        if row + 1 < len(weight):
            done, open_ = slice(0, row + 1), slice(row + 1, None)
            error = weight[done] - fixed[done]
            rest[open_] = weight[open_] + np.linalg.solve(hessian[open_, open_], hessian[open_, done] @ error)
    return fixed


@pytest.mark.parametrize("blocksize", [1, 3, 128])
def test_gptq_is_the_closed_form_on_a_small_layer(blocksize: int) -> None:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((8, 6)).astype(np.float32)
    inputs = rng.standard_normal((40, 8)) @ rng.standard_normal((8, 8))
    hessian = inputs.T @ inputs
    form = WeightFormat(3, -1, "asym")
    found = gptq(weight, hessian, form, GptqSettings(0.01, blocksize, actorder=False, mse=False))
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(8)
    plain = rtn(weight, form)
    expected = closed_form(weight.astype(np.float64), damped, plain.scales[0], plain.zero_points[0], 7)
    np.testing.assert_allclose(found.dequantized(), expected, atol=1e-5)
    assert not np.array_equal(found.integers, plain.integers)


@pytest.mark.parametrize("group_size", [16, 40, -1])
@pytest.mark.parametrize("given", [PLAIN, GptqSettings()], ids=["plain", "default"])
def test_the_block_size_of_gptq_changes_no_result(
    weight: np.ndarray, inputs: np.ndarray, group_size: int, given: GptqSettings
) -> None:
    form = WeightFormat(4, group_size, "asym")
    hessian = inputs.T @ inputs
    results = [
        gptq(weight, hessian, form, GptqSettings(0.01, size, given.actorder, given.mse)) for size in (1, 24, 128)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(other.integers, results[0].integers)
        np.testing.assert_allclose(other.scales, results[0].scales, rtol=1e-6)


def test_gptq_without_correlation_is_rounding_to_nearest(weight: np.ndarray) -> None:
    form = WeightFormat(4, 32, "sym")
    np.testing.assert_array_equal(gptq(weight, np.eye(96), form, PLAIN).integers, rtn(weight, form).integers)


def test_an_input_that_is_always_zero_spoils_nothing(weight: np.ndarray, inputs: np.ndarray) -> None:
    silent = inputs.copy()
    silent[:, 7] = 0.0
    form = WeightFormat(4, 32, "asym")
    for given in (PLAIN, GptqSettings()):
        found = gptq(weight, silent.T @ silent, form, given)
        assert np.abs(found.dequantized()[7] - weight[7]).max() <= np.abs(found.scales[0]).max()
    found = awq(weight, silent.T @ silent, np.abs(silent).mean(axis=0), form)
    assert np.isfinite(found.effective()).all()


@pytest.mark.parametrize("scheme", ["sym", "asym"])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, -1), (3, 32), (2, 16)])
def test_gptq_beats_rounding_and_awq_is_never_worse(
    weight: np.ndarray, inputs: np.ndarray, bits: int, group_size: int, scheme: Scheme
) -> None:
    seen = moments_of(inputs)
    form = WeightFormat(bits, group_size, scheme)

    def error(effective: np.ndarray) -> float:
        return float(np.square(inputs @ (weight - effective)).sum())

    rounding = error(rtn(weight, form).effective())
    assert error(gptq(weight, seen.moments(), form).effective()) < 0.6 * rounding
    assert error(gptq(weight, seen.moments(), form, PLAIN).effective()) < rounding
    for given in (AwqSettings(), AwqSettings(enable_mse_search=False), AwqSettings(enable_auto_scale=False)):
        assert error(awq(weight, seen.moments(), seen.magnitude(), form, given).effective()) < rounding


def test_the_output_error_is_that_of_the_inputs(weight: np.ndarray, inputs: np.ndarray) -> None:
    found = rtn(weight, WeightFormat(3, 32, "asym"))
    expected = np.square(inputs @ (weight - found.effective())).sum()
    assert output_error(weight, found, inputs.T @ inputs) == pytest.approx(expected)


def test_what_needs_data_says_so(weight: np.ndarray, inputs: np.ndarray) -> None:
    for algorithm in ("GPTQ", "AWQ"):
        config = TensorConfig("int", "asym", "per_channel", algorithm, 4, 32)
        with pytest.raises(TrialError, match="needs calibration data"):
            quantize_weight(weight, config)
        with pytest.raises(TrialError, match="96 input channels"):
            quantize_weight(weight, config, moments_of(inputs[:, :50]))
    with pytest.raises(TrialError, match="known: RTN"):
        quantize_weight(weight, TensorConfig("int", "asym", "per_channel", "minmax", 4, 32))


def test_settings_come_from_recipes_and_unknown_ones_are_refused() -> None:
    given = settings({"gptq_args": {"percdamp": 0.1, "actorder": False}, "rtn_args": {"enable_mse_search": True}})
    assert given.gptq == GptqSettings(percdamp=0.1, actorder=False)
    assert given.rtn.enable_mse_search
    with pytest.raises(TrialError, match="no setting 'damp'"):
        settings({"gptq_args": {"damp": 0.1}})
    with pytest.raises(TrialError, match="of type bool"):
        settings({"awq_args": {"enable_auto_scale": 1}})
