"""A first configuration for an ONNX model: what the model tells of itself, a guess at its task, and gaps to fill in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distune.errors import UsageError

if TYPE_CHECKING:
    import onnx

Task = Literal["images", "language_model", "text", "features", "unknown"]

GAP = "FILL_IN"
"""Stands in a starter wherever the user has to write something; ``validate`` finds it as a file that is missing."""

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Tensor:
    """An input or output: an int, or a name (``?`` where it has none) for each dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class ModelSketch:
    """What is seen of a model without running it.

    Attributes:
        op_types: How often each op type occurs, most frequent first.
        weighted: The same, of the ops with weights that can be quantized.
        opset: Version of the standard operators.
    """

    path: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    op_types: tuple[tuple[str, int], ...]
    weighted: tuple[tuple[str, int], ...]
    opset: int


def sketch(path: Path) -> ModelSketch:
    """Look at an ONNX file; weights in external files are not read.

    Raises:
        UsageError: There is no such file, or it is not an ONNX model.
    """
    import onnx

    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, whose module has no types
        raise UsageError(f"{path} is not an ONNX model ({error}); init reads ONNX files") from error
    graph = model.graph
    weights = {initializer.name for initializer in graph.initializer}
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    constants = weights | {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    weighted = [node.op_type for node in nodes if node.op_type in _WEIGHTED and constants & set(node.input[:3])]
    return ModelSketch(
        path,
        tuple(_tensor(value) for value in graph.input if value.name not in weights),
        tuple(_tensor(value) for value in graph.output),
        tuple(Counter(node.op_type for node in nodes).most_common()),
        tuple(Counter(weighted).most_common()),
        max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
    )


def guess_task(model: ModelSketch) -> Task:
    """What the model is for, by the shapes of its inputs and outputs."""
    first, out = model.inputs[:1], model.outputs[:1]
    if not first or not out:
        return "unknown"
    ids = [tensor for tensor in model.inputs if tensor.dtype in ("int64", "int32")]
    if ids:
        logits = len(out[0].shape) == 3 and out[0].name.lower() in ("logits", "lm_logits")
        return "language_model" if logits else "text"
    if len(model.inputs) == 1 and len(out[0].shape) == 2:
        if len(first[0].shape) == 4:
            return "images"
        if len(first[0].shape) == 2:
            return "features"
    return "unknown"


def starter(model: ModelSketch, relative_to: Path) -> tuple[str, tuple[str, ...]]:
    """The text of a commented configuration, and what is left to fill in, one sentence each.

    Args:
        relative_to: Folder of the configuration; the model's path in it is relative where it can be.
    """
    task = guess_task(model)
    try:
        path = str(model.path.resolve().relative_to(relative_to.resolve()))
    except ValueError:
        path = str(model.path.resolve())
    head = [
        f"# {model.path.name}: opset {model.opset}, " + ", ".join(f"{n} {t}" for t, n in model.op_types[:8]),
        *(f"#   input   {tensor}" for tensor in model.inputs),
        *(f"#   output  {tensor}" for tensor in model.outputs),
        f"# Looks like: {_LOOKS[task]}. Every key: distune schema --keys",
        "model:",
        "  framework: onnxruntime",
        f"  path: {_quoted(path)}",
        "",
    ]
    transformer = task in ("text", "language_model")
    body = _quantization(model, task, transformer) + _evaluation(model, task) + _TUNING[task == "language_model"]
    return "\n".join([*head, *body]) + "\n", _gaps(task)


_LOOKS: dict[Task, str] = {
    "images": "an image classifier",
    "language_model": "a language model (ids in, logits out)",
    "text": "a text encoder (ids in, vectors out)",
    "features": "a classifier of feature vectors",
    "unknown": "nothing that can be told from its inputs and outputs",
}


def _quantization(model: ModelSketch, task: Task, transformer: bool) -> list[str]:
    kinds = {op for op, _ in model.op_types}
    weighted = ", ".join(f"{count} {op}" for op, count in model.weighted) or "none"
    lines = [f"quantization:                    # ops with weights: {weighted}"]
    if transformer:
        lines += [
            "  # auto: static int8 where it can be, else dynamic; weight_only makes the file small, not fast",
            "  approach: post_training_auto_quant",
        ]
    else:
        lines += [
            "  # post_training_dynamic_quant needs no calibration; post_training_auto_quant tries both",
            "  approach: post_training_static_quant",
        ]
    if "LSTM" in kinds or "GRU" in kinds:
        lines.append("  # recurrent ops run in int8 only with post_training_dynamic_quant")
    lines += [
        "  calibration:",
        "    sampling_size: 200           # samples that set the ranges; not from the evaluation data",
        *_dataloader(model, task, "    ", "calibration", 20),
        "",
    ]
    return lines


def _evaluation(model: ModelSketch, task: Task) -> list[str]:
    lines = ["evaluation:", "  accuracy:"]
    if task in ("text", "unknown"):
        return [
            *lines,
            f"    # evaluate(model) returns a number; model({_call(model)}) runs one batch",
            f"    eval_func: {GAP}.py:evaluate",
            "",
        ]
    metric = "Perplexity: {}" if task == "language_model" else "topk: 1"
    return [*lines, "    metric:", f"      {metric}", *_dataloader(model, task, "    ", "evaluation", 100), ""]


def _call(model: ModelSketch) -> str:
    by_name = all(tensor.name.isidentifier() for tensor in model.inputs)
    return ", ".join(f"{tensor.name}=..." if by_name else "..." for tensor in model.inputs)


def _dataloader(model: ModelSketch, task: Task, indent: str, role: str, batch: int) -> list[str]:
    arrays = ", ".join(f"{tensor.name}: {tensor.name}" for tensor in model.inputs)
    inputs = "images" if task == "images" else f"{{{arrays}}}"
    label = "" if task in ("text", "unknown") else ", label: labels"
    batch = _fixed_batch(model) or batch
    lines = [
        f"{indent}dataloader:",
        f"{indent}  batch_size: {batch}",
        f"{indent}  dataset:                   # an .npz with these arrays, or your own: file.py:MyDataset",
        f"{indent}    Npz: {{path: {GAP}_{role}.npz, inputs: {inputs}{label}}}",
    ]
    return lines + (_image_transforms(model, indent) if task == "images" else [])


def _image_transforms(model: ModelSketch, indent: str) -> list[str]:
    shape = model.inputs[0].shape
    channels_last = shape[3] in _CHANNELS and shape[1] not in _CHANNELS
    lines = [f"{indent}  transform:                 # from uint8 [H, W, C] to what the network was trained on"]
    if not channels_last:
        lines.append(f"{indent}    Transpose: {{perm: [2, 0, 1]}}")
    lines.append(f"{indent}    Rescale: {{}}                # to 0..1")
    channels = shape[3] if channels_last else shape[1]
    if channels == 3:
        lines.append(f"{indent}    Normalize: {{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}  # ImageNet")
    return lines


def _fixed_batch(model: ModelSketch) -> int | None:
    sizes = {tensor.shape[0] for tensor in model.inputs if tensor.shape}
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if len(sizes) == 1 and fixed else None


_TUNING: dict[bool, list[str]] = {
    lower: [
        "tuning:",
        "  accuracy_criterion:",
        "    relative: 1%                 # the loss allowed; or absolute: 0.01",
        *(["    higher_is_better: false      # a lower perplexity is better"] if lower else []),
        "  exit_policy:",
        "    timeout: 0                   # stop at the first success; above 0: seconds in which to look further",
        "    max_trials: 100",
    ]
    for lower in (False, True)
}


def _gaps(task: Task) -> tuple[str, ...]:
    data = "the calibration data: an .npz file, or a dataset of your own"
    if task in ("text", "unknown"):
        return (data, "evaluate(model) in a Python file of yours: runs the model on your data and returns its score")
    check = {
        "images": ("whether the transforms are those of the training (mean and std above all)",),
        "language_model": ("labels: the input ids, one position on",),
    }
    return (data, "the evaluation data, with labels", *check.get(task, ()))


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    import onnx

    if not value.type.HasField("tensor_type"):
        return Tensor(value.name, str(value.type.WhichOneof("value")).removesuffix("_type"), ())
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    return Tensor(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, tuple(dims))


def _quoted(text: str) -> str:
    import json

    plain = all(letter.isalnum() or letter in "._/-" for letter in text)
    return text if plain and text else json.dumps(text, ensure_ascii=False)


__all__ = ["GAP", "ModelSketch", "Tensor", "guess_task", "sketch", "starter"]
