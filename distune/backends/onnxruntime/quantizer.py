"""ONNX Runtime's ``QDQQuantizer``, made fit for writing thousands of variants of one model.

What it writes is unchanged; only what would be computed again for every variant is remembered: scales and integers of
weights that were quantized the same way before.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

WeightCache = dict[Any, Any]
"""Opaque; belongs to one model."""


class CachingQdqQuantizer(QDQQuantizer):  # type: ignore[misc]
    """Writes one quantized variant of a model.

    Args:
        model: Changed in place.
        nodes: Names of the nodes to quantize.
        op_types: Every op type that may be quantized.
        ranges: Range by activation.
        overrides: ``TensorQuantOverrides`` as ``quantize_static`` documents them.
        keep_activation_before: Tensors before which Relu and Clip must stay: a symmetric range reaches below zero, so
            that saturation does not do their work.
        cache: Shared by all variants of one model.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        nodes: list[str],
        op_types: list[str],
        ranges: dict[str, TensorData],
        overrides: dict[str, list[dict[str, Any]]],
        keep_activation_before: Collection[str],
        cache: WeightCache,
    ) -> None:
        super().__init__(
            model,
            per_channel=False,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=op_types,
            extra_options={"TensorQuantOverrides": overrides},
        )
        self._keep_activation_before = keep_activation_before
        self._cache = cache

    def write(self) -> onnx.ModelProto:
        """The quantized model, its nodes in topological order."""
        self.quantize_model()
        self.model.topological_sort()
        proto: onnx.ModelProto = self.model.model
        return proto

    def try_replacing_upstream_output(self, upstream_output_name: str, output_name: str) -> bool:
        if output_name in self._keep_activation_before:
            return False
        replaced: bool = super().try_replacing_upstream_output(upstream_output_name, output_name)
        return replaced
