"""Round to nearest: no data, no search."""

from __future__ import annotations

from distune.backends.weight_only.grouped import Float, GroupedWeight, WeightFormat, grouped, parameters, quantized


def rtn(weight: Float, form: WeightFormat) -> GroupedWeight:
    """Quantize ``weight`` [K, N] by rounding every value to the nearest level of its group."""
    return quantized(weight, *parameters(grouped(weight, form.group(len(weight))), form), form)
