"""From a tuning config to the reference graph: quantize and dequantize nodes around floating-point ops."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e import allow_exported_model_train_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from distune.backends.pytorch.halves import write_halves
from distune.backends.pytorch.program import ExportedModule, copied, named_tensor
from distune.backends.pytorch.quantizer import Range, TuningQuantizer, WeightScales
from distune.space.op_config import TuningConfig


def converted(
    model: ExportedModule,
    config: TuningConfig,
    ranges: Mapping[str, Range],
    scales: WeightScales | None = None,
    reduce_range: bool | None = None,
) -> GraphModule:
    """The reference graph of ``config``; weights are stored as integers.

    Args:
        model: In fp32, BatchNorm folded; not changed.
        config: Effective.
        ranges: Range by tensor, of all that ``quantizer.needed_ranges`` names.
        scales: Of weights, kept from trial to trial.
        reduce_range: See ``cpu.needs_reduce_range``.
    """
    module = model.fresh()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
        prepared = prepare_pt2e(module, TuningQuantizer(model, config, ranges, scales, reduce_range))
        out = convert_pt2e(prepared)
    write_halves(out, model, config)
    prune(out)
    return allow_exported_model_train_eval(out)


def prune(module: GraphModule) -> None:
    """Take out parameters and buffers that the graph does not use, such as float weights that were quantized."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    called = tuple(f"{node.target}." for node in module.graph.nodes if node.op == "call_module")
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    for name in names:
        if name not in used and not name.startswith(called):
            path, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(path), attribute)


def with_float_weights(module: GraphModule) -> GraphModule:
    """A copy of a reference graph in which dequantized weights are stored: it gives the same numbers in less time."""
    out = copied(module)
    for node in list(out.graph.nodes):
        if node.target not in _DEQUANTIZE or any(other.op != "get_attr" for other in node.all_input_nodes):
            continue
        arguments = torch.fx.map_arg(node.args, lambda other: named_tensor(out, str(other.target)))
        with torch.no_grad():
            value = node.target(*arguments, **node.kwargs)
        name = f"_dequantized_{node.name}"
        out.register_buffer(name, value)
        with out.graph.inserting_before(node):
            stored = out.graph.get_attr(name)
        stored.meta.update(node.meta)
        node.replace_all_uses_with(stored)
        out.graph.erase_node(node)
    out.graph.eliminate_dead_code()
    out.recompile()
    prune(out)
    return out


_DEQUANTIZE = (
    torch.ops.quantized_decomposed.dequantize_per_channel.default,
    torch.ops.quantized_decomposed.dequantize_per_tensor.default,
)
