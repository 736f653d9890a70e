"""The exported program and its ops: which nodes of the graph each op is, and what the op is called.

A name is the path of the module that the op belongs to, plus a call index from the second call on: ``layer1.0.conv1``,
``layer1.0.conv1#1``. What a module's ``forward`` computes with functions is named after the function:
``layer1.0.add``, ``layer1.0.relu#1``. Names do not depend on the batch, the device or what was quantized.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch.export.pt2_archive._package import package_pt2
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.utils import _fuse_conv_bn_, _fuse_linear_bn_

from distune.backends.base import InputInfo
from distune.backends.pytorch.model import LoadedModule
from distune.backends.pytorch.partition import PART, Partition
from distune.backends.pytorch.refusal import refusal
from distune.backends.pytorch.signature import shapes_for
from distune.errors import ModelError

aten = torch.ops.aten

OP_TYPES: dict[Any, str] = {
    aten.conv1d.default: "Conv1d",
    aten.conv2d.default: "Conv2d",
    aten.conv3d.default: "Conv3d",
    aten.conv1d.padding: "Conv1d",
    aten.conv2d.padding: "Conv2d",
    aten.conv3d.padding: "Conv3d",
    aten.conv_transpose1d.default: "ConvTranspose1d",
    aten.conv_transpose2d.input: "ConvTranspose2d",
    aten.conv_transpose3d.input: "ConvTranspose3d",
    aten.linear.default: "Linear",
    aten.embedding.default: "Embedding",
    aten.embedding_bag.padding_idx: "EmbeddingBag",
    aten.lstm.input: "LSTM",
    aten.gru.input: "GRU",
    aten.rnn_tanh.input: "RNN",
    aten.rnn_relu.input: "RNN",
    aten.batch_norm.default: "BatchNorm",
    aten.layer_norm.default: "LayerNorm",
    aten.relu.default: "ReLU",
    aten.relu_.default: "ReLU",
    aten.relu6.default: "ReLU6",
    aten.hardtanh.default: "Hardtanh",
    aten.hardtanh_.default: "Hardtanh",
    aten.hardswish.default: "Hardswish",
    aten.hardswish_.default: "Hardswish",
    aten.hardsigmoid.default: "Hardsigmoid",
    aten.gelu.default: "GELU",
    aten.silu.default: "SiLU",
    aten.sigmoid.default: "Sigmoid",
    aten.tanh.default: "Tanh",
    aten.leaky_relu.default: "LeakyReLU",
    aten.max_pool1d.default: "MaxPool1d",
    aten.max_pool2d.default: "MaxPool2d",
    aten.avg_pool2d.default: "AvgPool2d",
    aten.adaptive_avg_pool2d.default: "AdaptiveAvgPool2d",
    aten.softmax.int: "Softmax",
    aten.add.Tensor: "add",
    aten.add_.Tensor: "add",
    aten.mul.Tensor: "mul",
    aten.mul_.Tensor: "mul",
    aten.cat.default: "cat",
    aten.mean.dim: "mean",
    aten.matmul.default: "matmul",
    aten.bmm.default: "bmm",
    aten.scaled_dot_product_attention.default: "scaled_dot_product_attention",
    aten.flatten.using_ints: "flatten",
}
"""Op type by what the graph calls; anything else is named after its ATen function."""

_UNNAMED = frozenset({"getitem", "sym_size", "_assert_tensor_metadata", "detach", "alias"})

_WEIGHT_POSITIONS: dict[str, int] = {
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), 1),
    "Linear": 1,
    "Embedding": 0,
    "EmbeddingBag": 0,
}


@dataclass(frozen=True)
class ModuleOp:
    """One op of the exported graph.

    Attributes:
        name: See the module's description; unique.
        op_type: ``Conv2d``, ``Linear``, ``add``, ...
        node: Name of the fx node that computes it.
        module_path: Path of the ``nn.Module`` that it belongs to; empty for the root.
        weight: Qualified name of the parameter or buffer that is its weight, empty where it has none.
        weight_node: Name of the ``get_attr`` node of the weight.
    """

    name: str
    op_type: str
    node: str
    module_path: str
    weight: str = ""
    weight_node: str = ""


@dataclass(frozen=True)
class ExportedModule:
    """What ``torch.export`` made of the user's module.

    Attributes:
        program: The exported program, its parameters shared with the user's module.
        graph_module: Its graph as an fx module without guards; in inference form. Copy it before changing it
            (``fresh``).
        ops: Every op that computes, in graph order.
        inputs: What is fed.
        output_names: One name an output tensor.
        example_inputs: What it was exported with.
        partition: How the module was taken apart, where it could not be exported as a whole; the graph holds the graphs
            of the parts side by side then, and ``program`` is that of the first.
    """

    program: torch.export.ExportedProgram
    graph_module: GraphModule
    ops: tuple[ModuleOp, ...]
    inputs: tuple[InputInfo, ...]
    output_names: tuple[str, ...]
    example_inputs: tuple[torch.Tensor | None, ...]
    partition: Partition | None = None
    op: dict[str, ModuleOp] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "op", {op.name: op for op in self.ops})

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Nodes of the graph by name, in graph order."""
        return {node.name: node for node in self.graph_module.graph.nodes}

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter or buffer of a qualified name."""
        return named_tensor(self.graph_module, name)

    def folded(self) -> ExportedModule:
        """The same module with BatchNorm folded into what is before it: the form that post-training methods work on."""
        module = self.fresh()
        _fuse_conv_bn_(module)
        _fuse_linear_bn_(module)
        module.graph.eliminate_dead_code()
        module.recompile()
        return replace(self, graph_module=module, ops=find_ops(module))

    @cached_property
    def by_node(self) -> dict[str, ModuleOp]:
        """Ops by the name of their node."""
        return {op.node: op for op in self.ops}

    def fresh(self) -> GraphModule:
        """A copy of the graph that may be rewritten; it shares parameters and buffers, which must not be."""
        return copied(self.graph_module)


def named_tensor(module: torch.nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer of a qualified name."""
    path, _, attribute = name.rpartition(".")
    found = getattr(module.get_submodule(path), attribute)
    assert isinstance(found, torch.Tensor)  # what a get_attr node of an exported graph names
    return found.detach()


def copied(module: GraphModule) -> GraphModule:
    """A graph module of its own that shares all tensors with ``module``."""
    graph = torch.fx.Graph()
    mapping: dict[Node, Node] = {}
    graph.output(graph.graph_copy(module.graph, mapping))
    graph._codegen = copy.copy(module.graph._codegen)
    for old, new in mapping.items():
        new.meta = copy.copy(old.meta)
        new._rename(old.name)
    result = GraphModule(module, graph)
    result.meta.update(module.meta)
    result.training = module.training
    return result


def export_module(loaded: LoadedModule) -> ExportedModule:
    """Export a module with its dynamic axes.

    Raises:
        ModelError: ``torch.export`` refuses it; with torch's own reason and the module where it stopped.
    """
    program = loaded.program if loaded.program is not None else export_program(loaded)
    module = program.module(check_guards=False)
    outputs = next(node for node in module.graph.nodes if node.op == "output").all_input_nodes
    names = _output_names(program, len(outputs))
    return ExportedModule(
        program=program,
        graph_module=module,
        ops=find_ops(module),
        inputs=input_infos(loaded),
        output_names=names,
        example_inputs=loaded.example_inputs,
    )


def saved_program(module: GraphModule, model: ExportedModule) -> bytes:
    """A quantized graph of ``model`` as the bytes of a ``.pt2`` file, its axes dynamic like those of the fp32 model.

    Of a model that was taken apart the file holds a program for each part, by its path.
    """
    stream = io.BytesIO()
    with quiet():
        if model.partition is None:
            torch.export.save(program_of(module, model), stream)
        else:
            graphs = model.partition.split(module)
            programs = {
                f"{PART}{part.path}": _program(graphs[part.path], part.examples, part.dynamic_axes)
                for part in model.partition.parts
            }
            package_pt2(stream, exported_programs=programs)
    return stream.getvalue()


def program_of(module: GraphModule, model: ExportedModule) -> torch.export.ExportedProgram:
    """A quantized graph of ``model`` as a program, its axes dynamic like those of the fp32 model."""
    infos = iter(model.inputs)
    axes = []
    for example in model.example_inputs:
        sizes = () if example is None else next(infos).shape
        axes.append(tuple(axis for axis, size in enumerate(sizes) if not isinstance(size, int)))
    return _program(module, model.example_inputs, axes)


def _program(
    module: GraphModule, examples: tuple[torch.Tensor | None, ...], axes: Sequence[Sequence[int]]
) -> torch.export.ExportedProgram:
    auto = torch.export.Dim.AUTO
    pairs = zip(examples, axes, strict=True)
    shapes = [None if example is None else dict.fromkeys(dynamic, auto) for example, dynamic in pairs]
    with torch.no_grad(), quiet():
        return torch.export.export(module, examples, dynamic_shapes=shapes_for(module, shapes))


def described_inputs(model: ExportedModule) -> dict[str, dict[str, Any]]:
    """Shape and dtype of each input that the model was exported with, and its dynamic axes, as plain values."""
    fed = [example for example in model.example_inputs if example is not None]
    return {
        info.name: {
            "shape": list(example.shape),
            "dtype": info.dtype,
            "dynamic": [axis for axis, size in enumerate(info.shape) if not isinstance(size, int)],
        }
        for info, example in zip(model.inputs, fed, strict=True)
    }


def find_ops(module: GraphModule) -> tuple[ModuleOp, ...]:
    """The ops of an exported graph, in graph order."""
    counts: dict[str, int] = {}
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function" or _function_name(node) in _UNNAMED:
            continue
        path, kind = _module_of(node)
        op_type = OP_TYPES.get(node.target, _function_name(node))
        own = path and _is_what_the_module_is_for(op_type, kind)
        base = path if own else ".".join(filter(None, [path, _function_name(node)]))
        index = counts.get(base, 0)
        counts[base] = index + 1
        weight = _weight_of(node, op_type)
        found.append(
            ModuleOp(
                name=base if index == 0 else f"{base}#{index}",
                op_type=op_type,
                node=node.name,
                module_path=path,
                weight="" if weight is None else str(weight.target),
                weight_node="" if weight is None else weight.name,
            )
        )
    return tuple(found)


def _weight_of(node: Node, op_type: str) -> Node | None:
    position = _WEIGHT_POSITIONS.get(op_type)
    weight = node.args[position] if position is not None and len(node.args) > position else None
    return weight if isinstance(weight, Node) and weight.op == "get_attr" else None


def op_type_of(node: Node) -> str:
    """The op type of a node; empty where it computes nothing."""
    return OP_TYPES.get(node.target, _function_name(node)) if node.op == "call_function" else ""


def _function_name(node: Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).rpartition("::")[2].rstrip("_")
    return str(getattr(target, "__name__", target))


def _module_of(node: Node) -> tuple[str, str]:
    """Path and class name of the innermost module that the node was traced in."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = "", ""
    for entry in stack.values():
        path, where = entry[0], entry[1]
        kind = where if isinstance(where, str) else f"{where.__module__}.{where.__qualname__}"
    kind = kind.rpartition(".")[2]
    return (path, kind) if not path.startswith("_empty_nn_module_stack") else ("", "")


def _is_what_the_module_is_for(op_type: str, kind: str) -> bool:
    """Whether an op is the one that modules of class ``kind`` are named after, by which the module itself is meant."""
    return op_type.casefold() == kind.casefold() or (op_type == "BatchNorm" and kind.startswith("BatchNorm"))


def export_program(loaded: LoadedModule) -> torch.export.ExportedProgram:
    """``torch.export`` with the dynamic axes of a module.

    Raises:
        ModelError: It refuses; its own error is the cause.
    """
    auto = torch.export.Dim.AUTO
    names = iter(loaded.input_names)
    shapes: list[dict[int, Any] | None] = []
    for example in loaded.example_inputs:
        shapes.append(None if example is None else dict.fromkeys(loaded.dynamic_axes[next(names)], auto))
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(
                loaded.module, loaded.example_inputs, dynamic_shapes=shapes_for(loaded.module, shapes)
            )
    except Exception as error:  # torch has dozens of classes for what it cannot trace
        raise ModelError(refusal(loaded, error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without remarks of torch's exporters on themselves and on packages that are not there; errors are raised."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.onnx._internal.exporter._registration")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def input_infos(loaded: LoadedModule) -> tuple[InputInfo, ...]:
    """What a module is fed."""
    return tuple(_input_info(name, loaded) for name in loaded.input_names)


def _input_info(name: str, loaded: LoadedModule) -> InputInfo:
    position = loaded.input_names.index(name)
    tensor = [value for value in loaded.example_inputs if value is not None][position]
    dynamic = loaded.dynamic_axes[name]
    shape = tuple(None if axis in dynamic else int(size) for axis, size in enumerate(tensor.shape))
    return InputInfo(name, str(tensor.dtype).removeprefix("torch."), shape)


def _output_names(program: torch.export.ExportedProgram, count: int) -> tuple[str, ...]:
    spec = program.call_spec.out_spec
    keys = getattr(spec, "context", None) if spec is not None and spec.type in (dict,) else None
    if isinstance(keys, list) and len(keys) == count:
        return tuple(str(key) for key in keys)
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))
