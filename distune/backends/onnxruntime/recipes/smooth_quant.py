"""SmoothQuant: outliers of an activation's channels are moved into the weights behind it.

G. Xiao, J. Lin, M. Seznec, H. Wu, J. Demouth, S. Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization
for Large Language Models", ICML 2023 (arXiv:2211.10438), equation 4: channel ``j`` of the activation is divided by
``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` and the weights of that channel are multiplied by it. The division is
folded into the LayerNormalization or the layer before where nobody else reads the tensor, else it is a Mul.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from distune.backends.channel_statistics import ChannelStatistics, channel_key
from distune.backends.onnxruntime.graph import GraphIndex, attribute
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.recipes.layers import Layer, constant, layer_of, layers, set_constant
from distune.backends.onnxruntime.weights import add_constant
from distune.space.recipes import SmoothQuantArgs

_SMALLEST = 1e-5
"""Lower bound of channel maxima and factors, as in the authors' code."""

_LEVELS = 255

Factors = dict[str, NDArray[np.float32]]
"""What each channel of a tensor is divided by, by tensor name."""


@dataclass(frozen=True)
class Smoothable:
    """An activation and the layers that multiply it.

    Attributes:
        tensor: Name of the activation.
        members: The Gemms and MatMuls that read it.
        alone: Nobody else reads it.
    """

    tensor: str
    members: tuple[Layer, ...]
    alone: bool


def smoothable(model: PreparedModel) -> tuple[Smoothable, ...]:
    """The activations before Gemm and MatMul layers, in graph order."""
    by_tensor: dict[str, list[Layer]] = {}
    for layer in layers(model):
        if not layer.is_conv and len(model.index.consumers[layer.weight]) == 1:
            by_tensor.setdefault(layer.input, []).append(layer)
    return tuple(
        Smoothable(
            tensor,
            tuple(members),
            tensor not in model.index.outputs and len(model.index.consumers[tensor]) == len(members),
        )
        for tensor, members in by_tensor.items()
    )


def factors(
    model: PreparedModel,
    channels: Mapping[str, ChannelStatistics],
    alpha: float | str,
    args: SmoothQuantArgs,
    blocks: Sequence[Sequence[str]] = (),
) -> Factors:
    """The smoothing factors of every activation that was calibrated.

    Args:
        channels: Of the activations, by ``channel_key``.
        alpha: 0 to 1, or ``auto``: each activation's own, by ``expected_error``.
        blocks: Names of layers that share the alpha that ``auto`` chooses: the one with the smallest mean error.
    """
    spots = {spot.tensor: spot for spot in smoothable(model)}
    known = {tensor: channels.get(channel_key(tensor, -1)) for tensor in spots}
    seen = {tensor: found for tensor, found in known.items() if found is not None and found.count}
    weights = {tensor: [constant(model.index, layer.weight) for layer in spots[tensor].members] for tensor in seen}
    alphas = dict.fromkeys(seen, 0.0 if alpha == "auto" else float(alpha))
    if alpha == "auto":
        losses = {tensor: alpha_losses(spots[tensor], seen[tensor], weights[tensor], args) for tensor in seen}
        for together in _sharing([spots[tensor] for tensor in seen], blocks):
            shared = {each: float(np.mean([losses[tensor][each] for tensor in together])) for each in args.alphas}
            alphas.update(dict.fromkeys(together, _least(shared, args.default_alpha)))
    return {tensor: _factors(spots[tensor], seen[tensor], weights[tensor], alphas[tensor], args) for tensor in seen}


def _sharing(spots: Sequence[Smoothable], blocks: Sequence[Sequence[str]]) -> list[list[str]]:
    """Tensors that share an alpha: those that layers of one block read; each of the others is alone."""
    number = {name: index for index, block in enumerate(blocks) for name in block}
    sharing: dict[int, list[str]] = {}
    for index, spot in enumerate(spots):
        own = {number[layer.name] for layer in spot.members if layer.name in number}
        sharing.setdefault(min(own) if own else -1 - index, []).append(spot.tensor)
    return list(sharing.values())


def best_alpha(
    spot: Smoothable, seen: ChannelStatistics, weights: list[NDArray[np.float32]], args: SmoothQuantArgs
) -> float:
    """The alpha of the grid with the smallest expected output error; of equals the one nearest to the default."""
    return _least(alpha_losses(spot, seen, weights, args), args.default_alpha)


def _least(losses: Mapping[float, float], default: float) -> float:
    return min(losses, key=lambda alpha: (losses[alpha], abs(alpha - default)))


def alpha_losses(
    spot: Smoothable, seen: ChannelStatistics, weights: list[NDArray[np.float32]], args: SmoothQuantArgs
) -> dict[float, float]:
    """Expected output error by alpha of the grid, joined over the layers that read the activation."""
    join = getattr(np, args.shared_criterion)
    return {
        alpha: float(
            join(
                [
                    expected_error(layer, weight, seen, _factors(spot, seen, weights, alpha, args))
                    for layer, weight in zip(spot.members, weights, strict=True)
                ]
            )
        )
        for alpha in args.alphas
    }


def expected_error(layer: Layer, weight: NDArray[np.float32], seen: ChannelStatistics, s: NDArray[np.float32]) -> float:
    """Expected squared error of a layer's output in 8 bits, as a share of the output's power.

    The error of each rounded weight meets the mean square of its input channel; rounding the activation, 8 bits over
    its whole range, adds uniform noise of ``step**2 / 12`` a value. Both are taken to be independent between channels.
    """
    rows = layer.matrix(weight)[0].astype(np.float64)
    smoothed = rows * s
    step = np.abs(smoothed).max(1, keepdims=True) / 127
    step[step == 0] = 1
    weight_error = np.rint(smoothed / step) * step - smoothed
    mean_square = seen.mean_square / np.square(s, dtype=np.float64)
    low, high = min(0.0, float((seen.low / s).min())), max(0.0, float((seen.high / s).max()))
    noise = ((high - low) / _LEVELS) ** 2 / 12
    error = float((np.square(weight_error) @ mean_square).sum() + noise * np.square(smoothed).sum())
    power = float((np.square(rows) @ seen.mean_square).sum())
    return error / power if power else error


def smooth(model: PreparedModel, found: Factors, folding: bool = True) -> onnx.ModelProto:
    """A copy of the model in which the given activations are divided by their factors and the weights make up for it.

    Args:
        folding: Put the division into what comes before where that can be; otherwise always a Mul.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    nodes = {node.name: node for node in proto.graph.node}
    changed: dict[str, NDArray[np.float32]] = {}

    def value(name: str) -> NDArray[np.float32]:
        return changed[name] if name in changed else constant(model.index, name)

    inserted: dict[str, onnx.NodeProto] = {}
    for spot in smoothable(model):
        s = found.get(spot.tensor)
        if s is None:
            continue
        for layer in spot.members:
            changed[layer.weight] = layer.scale_inputs(value(layer.weight), s)
        constants = list(_foldable(model.index, spot, len(s))) if folding and spot.alone else []
        for name, divide in constants:
            changed[name] = divide(value(name), s)
        if not constants:
            inserted[spot.tensor] = _insert_mul(proto, model, spot, s, nodes)
    for name, values in changed.items():
        set_constant(proto, name, values)
    _place(proto, inserted)
    return proto


class _Divide:
    """Divides the outputs of a layer, or a vector, by the factors."""

    def __init__(self, layer: Layer | None = None) -> None:
        self._layer = layer

    def __call__(self, values: NDArray[np.float32], s: NDArray[np.float32]) -> NDArray[np.float32]:
        return values / s if self._layer is None else self._layer.scale_outputs(values, 1 / s)


def _factors(
    spot: Smoothable,
    seen: ChannelStatistics,
    weights: list[NDArray[np.float32]],
    alpha: float,
    args: SmoothQuantArgs,
) -> NDArray[np.float32]:
    peaks = [layer.input_peaks(weight) for layer, weight in zip(spot.members, weights, strict=True)]
    weight_peak = np.max(peaks, axis=0).astype(np.float64)
    if args.weight_clip:
        weight_peak = np.maximum(weight_peak, _SMALLEST)
    input_peak = np.maximum(seen.peak.astype(np.float64), _SMALLEST)
    unused = weight_peak <= 0
    s = input_peak**alpha / np.where(unused, 1.0, weight_peak) ** (1 - alpha)
    s = np.where(unused, 1.0, np.maximum(s, _SMALLEST))
    return s.astype(np.float32)


def _foldable(index: GraphIndex, spot: Smoothable, channels: int) -> Iterator[tuple[str, _Divide]]:
    """The constants that make the tensor, each with how it is divided; none where it cannot be folded."""
    producer = index.producer.get(spot.tensor)
    if producer is not None and producer.op_type == "Relu":
        before = producer.input[0]
        producer = index.producer.get(before) if index.only_consumer(before) is producer else None
    if producer is None:
        return
    if producer.op_type == "LayerNormalization" and producer.output[0] == spot.tensor:
        names = [name for name in producer.input[1:3] if name]
        axis = attribute(producer, "axis", -1)
        if axis == -1 and all(_own_vector(index, name, channels) for name in names):
            yield from ((name, _Divide()) for name in names)
        return
    for layer in _before(index, producer):
        names = [name for name in (layer.weight, layer.bias) if name]
        if any(len(index.consumers.get(name, ())) != 1 for name in names):
            return
        yield layer.weight, _Divide(layer)
        if layer.bias:
            yield layer.bias, _Divide()


def _before(index: GraphIndex, node: onnx.NodeProto) -> Iterator[Layer]:
    """The Gemm, or the MatMul with or without Add, whose output ``node`` makes."""
    if node.op_type == "Add":
        made = [index.producer[name] for name in node.input if name in index.producer]
        if len(made) != 1 or made[0].op_type != "MatMul":
            return
        layer = layer_of(index, made[0])
        if layer is not None and layer.output == node.output[0]:
            yield layer
    elif node.op_type in ("Gemm", "MatMul"):
        layer = layer_of(index, node)
        if layer is not None and layer.output == node.output[0] and (len(node.input) < 3 or layer.bias):
            yield layer


def _own_vector(index: GraphIndex, name: str, channels: int) -> bool:
    tensor = index.initializers.get(name)
    return tensor is not None and list(tensor.dims) == [channels] and len(index.consumers[name]) == 1


def _insert_mul(
    proto: onnx.ModelProto,
    model: PreparedModel,
    spot: Smoothable,
    s: NDArray[np.float32],
    nodes: Mapping[str, onnx.NodeProto],
) -> onnx.NodeProto:
    smoothed = f"{spot.tensor}_smoothed"
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.index.element_type[spot.tensor])
    inverse = add_constant(proto, f"{spot.tensor}_smooth_scale", (1 / s).astype(dtype))
    for layer in spot.members:
        node = nodes[layer.name]
        node.input[list(node.input).index(spot.tensor)] = smoothed
    info = proto.graph.value_info.add()
    known = {value.name: value for value in (*proto.graph.value_info, *proto.graph.input)}
    if spot.tensor in known:
        info.CopyFrom(known[spot.tensor])
    info.name = smoothed
    info.type.tensor_type.elem_type = model.index.element_type[spot.tensor]
    return onnx.helper.make_node("Mul", [spot.tensor, inverse], [smoothed], f"{smoothed}/Mul")


def _place(proto: onnx.ModelProto, inserted: Mapping[str, onnx.NodeProto]) -> None:
    """Put each new node behind what makes its input."""
    if not inserted:
        return
    made = {name for node in proto.graph.node for name in node.output}
    nodes = [node for tensor, node in inserted.items() if tensor not in made]
    for node in proto.graph.node:
        nodes.append(node)
        nodes += [inserted[name] for name in node.output if name in inserted]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def to_plain(found: Factors) -> dict[str, list[float]]:
    """Plain values, for a saved tuning config; float32 survives it exactly."""
    return {tensor: [float(value) for value in values] for tensor, values in found.items()}


def from_plain(saved: Mapping[str, list[float]]) -> Factors:
    """Inverse of ``to_plain``."""
    return {tensor: np.array(values, np.float32) for tensor, values in saved.items()}


__all__ = [
    "Factors",
    "Smoothable",
    "alpha_losses",
    "best_alpha",
    "expected_error",
    "factors",
    "from_plain",
    "smooth",
    "smoothable",
    "to_plain",
]
