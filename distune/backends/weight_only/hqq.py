"""Half-quadratic quantization: zero points that suit most weights, without data.

Source: H. Badri and A. Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs blog,
November 2023. The error ``|W - Q(W)|_p`` with p < 1 forgives the few large errors; it is split into a proximal step on
the error and a closed form for the zero points.
"""

from __future__ import annotations

import numpy as np

from distune.backends.weight_only.grouped import Float, GroupedWeight, WeightFormat, grouped, quantized
from distune.errors import TrialError

_NORM = 0.7
_BETA = 10.0
_KAPPA = 1.01
_ITERATIONS = 20
_LARGEST_INVERSE = 2e4


def hqq(weight: Float, form: WeightFormat) -> GroupedWeight:
    """Quantize ``weight`` [K, N]; the zero points are real numbers.

    Raises:
        TrialError: The format is symmetric: what HQQ optimises is the zero point.
    """
    if form.scheme != "asym":
        raise TrialError("HQQ chooses zero points: its scheme is asym")
    values = grouped(weight.astype(np.float32), form.group(len(weight)))
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    span = high - low
    span[span == 0] = form.levels
    inverse = np.minimum(form.levels / span, np.float32(_LARGEST_INVERSE))
    zero = np.rint(-low * inverse)
    beta, best = _BETA, np.inf
    for _ in range(_ITERATIONS):
        levels = np.clip(np.rint(values * inverse + zero), 0, form.levels)
        error = values - (levels - zero) / inverse
        zero = np.mean(levels - (values - _shrunk(error, beta)) * inverse, axis=1, keepdims=True)
        beta *= _KAPPA
        now = float(np.abs(error).mean())
        if now >= best:
            break
        best = now
    scales = (1.0 / inverse[:, 0]).astype(np.float32)
    return quantized(weight.astype(np.float32), scales, zero[:, 0].astype(np.float32), form)


def _shrunk(error: Float, beta: float) -> Float:
    """Generalised soft thresholding: the proximal operator of the p-norm."""
    magnitude = np.abs(error)
    out: Float = np.sign(error) * np.maximum(magnitude - (magnitude + 1e-8) ** (_NORM - 1) / beta, 0)
    return out
