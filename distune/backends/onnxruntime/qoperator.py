"""The QOperator form of a quantized graph: one integer operator in place of each DequantizeLinear, op, QuantizeLinear.

Both forms compute the same: ONNX Runtime turns the one into the other when it loads a model. Written out, the file is
shorter and runs where a runtime does not look for Q/DQ pairs. An op without an integer operator keeps its pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper, numpy_helper

from distune.backends.onnxruntime.graph import WEIGHTED, GraphIndex, attribute, tensors_read
from distune.backends.onnxruntime.weights import drop_unused_constants

MICROSOFT = "com.microsoft"

_INTEGER_UNCHANGED = frozenset(
    {
        "MaxPool",
        "Split",
        "Resize",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "ReduceMax",
        "ReduceMin",
        "Gather",
        "GatherElements",
        "Expand",
        "Tile",
        "DepthToSpace",
    }
)
"""Op types that run on integers as they are, where scale and zero point are the same on both sides."""


@dataclass(frozen=True)
class _Quantized:
    """Names of a tensor's integers, scale and zero point."""

    data: str
    scale: str
    zero_point: str

    @property
    def names(self) -> tuple[str, str, str]:
        return self.data, self.scale, self.zero_point


def to_qoperator(proto: onnx.ModelProto) -> None:
    """Rewrite the Q/DQ pairs of ``proto`` in place."""
    _Rewriter(proto).rewrite()


class _Rewriter:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._index = GraphIndex(proto)
        self._absorbed: set[str] = set()

    def rewrite(self) -> None:
        nodes = [self._rewritten(node) for node in self._proto.graph.node]
        kept = [node for node in nodes if node.op_type != "QuantizeLinear" or node.output[0] not in self._absorbed]
        kept = _without_unread(kept, [output.name for output in self._proto.graph.output])
        del self._proto.graph.node[:]
        self._proto.graph.node.extend(kept)
        drop_unused_constants(self._proto)
        domains = {entry.domain for entry in self._proto.opset_import}
        if MICROSOFT not in domains and any(node.domain == MICROSOFT for node in kept):
            self._proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))

    def _rewritten(self, node: onnx.NodeProto) -> onnx.NodeProto:
        if node.op_type not in _WRITERS and node.op_type not in _INTEGER_UNCHANGED:
            return node
        sources = [self._source(name) for name in node.input]
        targets = [self._target(name) for name in node.output]
        if node.op_type in _WRITERS and not self._has_operator(node, sources, targets):
            return node
        if node.op_type == "MatMul" and targets == [None]:
            return _to_float(node, sources)
        if not sources or sources[0] is None or any(target is None for target in targets):
            return node
        outputs = [target for target in targets if target is not None]
        if node.op_type in _INTEGER_UNCHANGED:
            new = self._unchanged(node, sources[0], outputs)
        else:
            new = _WRITERS[node.op_type](node, sources, outputs[0])
        if new is None:
            return node
        new.name = node.name
        self._absorbed.update(output.data for output in outputs)
        return new

    def _has_operator(self, node: onnx.NodeProto, sources: _Sources, targets: _Sources) -> bool:
        """Whether there is an operator for integers of these types.

        A product is of the type of the first factor, and if that is int8, the second factor is so, too. Of other ops
        all tensors have one type.
        """
        known = self._index.element_type
        read, written = (
            [known.get(value.zero_point) for value in values if value is not None] for values in (sources, targets)
        )
        if node.op_type in WEIGHTED:
            return read[:2] != [onnx.TensorProto.INT8, onnx.TensorProto.UINT8] and set(written) <= set(read[:1])
        return len({*read, *written}) == 1

    def _source(self, tensor: str) -> _Quantized | None:
        """What ``tensor`` is dequantized from."""
        producer = self._index.producer.get(tensor)
        if producer is None or producer.op_type != "DequantizeLinear":
            return None
        data, scale, *zero_point = producer.input
        return _Quantized(data, scale, zero_point[0] if zero_point else "")

    def _target(self, tensor: str) -> _Quantized | None:
        """What ``tensor`` is quantized to, where nothing else reads it."""
        reader = self._index.only_consumer(tensor)
        if reader is None or reader.op_type != "QuantizeLinear" or len(reader.input) < 3:
            return None
        return _Quantized(reader.output[0], reader.input[1], reader.input[2])

    def _unchanged(
        self, node: onnx.NodeProto, source: _Quantized, outputs: Sequence[_Quantized]
    ) -> onnx.NodeProto | None:
        if not all(self._same(source, output) for output in outputs):
            return None
        if attribute(node, "antialias", 0):  # a Resize whose integer kernel clips int8 to the range of uint8
            return None
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.input[0] = source.data
        del new.output[:]
        new.output.extend(output.data for output in outputs)
        return new

    def _same(self, a: _Quantized, b: _Quantized) -> bool:
        """Scale and zero point are equal by name or by value."""
        return all(self._equal(x, y) for x, y in ((a.scale, b.scale), (a.zero_point, b.zero_point)))

    def _equal(self, a: str, b: str) -> bool:
        constants = self._index.initializers
        if a == b or a not in constants or b not in constants:
            return a == b
        left, right = numpy_helper.to_array(constants[a]), numpy_helper.to_array(constants[b])
        return bool(left.dtype == right.dtype and left.tobytes() == right.tobytes())


def _without_unread(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes but DequantizeLinear ones that nobody reads."""
    read = {name for node in nodes for name in tensors_read(node)}.union(outputs)
    return [node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in read]


_Sources = Sequence[_Quantized | None]
_Writer = Callable[[onnx.NodeProto, _Sources, _Quantized], onnx.NodeProto | None]


def _conv(node: onnx.NodeProto, sources: _Sources, output: _Quantized) -> onnx.NodeProto | None:
    x, weight, bias = (*sources, None)[:3]
    if x is None or weight is None or (len(node.input) > 2 and node.input[2] and bias is None):
        return None
    inputs = [*x.names, *weight.names, output.scale, output.zero_point]
    return _made(node, "QLinearConv", [*inputs, bias.data] if bias is not None else inputs, output)


def _matmul(node: onnx.NodeProto, sources: _Sources, output: _Quantized) -> onnx.NodeProto | None:
    a, b = sources
    if a is None or b is None:
        return None
    return _made(node, "QLinearMatMul", [*a.names, *b.names, output.scale, output.zero_point], output)


def _to_float(node: onnx.NodeProto, sources: _Sources) -> onnx.NodeProto:
    """A product of integers whose result is floating point."""
    a, b = sources
    if a is None or b is None:
        return node
    inputs = [a.data, b.data, a.scale, b.scale, a.zero_point, b.zero_point]
    return helper.make_node("MatMulIntegerToFloat", inputs, list(node.output), node.name, domain=MICROSOFT)


def _gemm(node: onnx.NodeProto, sources: _Sources, output: _Quantized) -> onnx.NodeProto | None:
    a, b, bias = (*sources, None)[:3]
    has_bias = len(node.input) > 2 and bool(node.input[2])
    beta = attribute(node, "beta", 1.0)
    if a is None or b is None or (has_bias and (bias is None or beta != 1.0)):
        return None
    inputs = [*a.names, *b.names, bias.data if bias is not None else "", output.scale, output.zero_point]
    new = _made(node, "QGemm", inputs, output, MICROSOFT)
    kept = [item for item in new.attribute if item.name != "beta"]
    del new.attribute[:]
    new.attribute.extend(kept)
    return new


def _two(op_type: str) -> _Writer:
    def write(node: onnx.NodeProto, sources: _Sources, output: _Quantized) -> onnx.NodeProto | None:
        a, b = sources
        if a is None or b is None:
            return None
        return _made(node, op_type, [*a.names, *b.names, output.scale, output.zero_point], output, MICROSOFT)

    return write


def _one(op_type: str) -> _Writer:
    def write(node: onnx.NodeProto, sources: _Sources, output: _Quantized) -> onnx.NodeProto | None:
        x = sources[0]
        if x is None:
            return None
        return _made(node, op_type, [*x.names, output.scale, output.zero_point], output, MICROSOFT)

    return write


def _softmax(node: onnx.NodeProto, sources: _Sources, output: _Quantized) -> onnx.NodeProto | None:
    new = _one("QLinearSoftmax")(node, sources, output)
    if new is not None:
        if not any(item.name == "axis" for item in new.attribute):
            new.attribute.append(helper.make_attribute("axis", -1))
        new.attribute.append(helper.make_attribute("opset", 13))
    return new


def _concat(node: onnx.NodeProto, sources: _Sources, output: _Quantized) -> onnx.NodeProto | None:
    inputs = [output.scale, output.zero_point]
    for source in sources:
        if source is None:
            return None
        inputs.extend(source.names)
    return _made(node, "QLinearConcat", inputs, output, MICROSOFT)


def _average_pool(node: onnx.NodeProto, sources: _Sources, output: _Quantized) -> onnx.NodeProto | None:
    return None if attribute(node, "ceil_mode", 0) else _one("QLinearAveragePool")(node, sources, output)


def _made(
    node: onnx.NodeProto, op_type: str, inputs: Sequence[str], output: _Quantized, domain: str = ""
) -> onnx.NodeProto:
    new = helper.make_node(op_type, list(inputs), [output.data], domain=domain)
    new.attribute.extend(node.attribute)
    return new


_WRITERS: Mapping[str, _Writer] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _two("QLinearAdd"),
    "Mul": _two("QLinearMul"),
    "Sigmoid": _one("QLinearSigmoid"),
    "LeakyRelu": _one("QLinearLeakyRelu"),
    "GlobalAveragePool": _one("QLinearGlobalAveragePool"),
    "AveragePool": _average_pool,
    "Concat": _concat,
    "Softmax": _softmax,
}
