"""Make the embedded example: train the digits network, write ``digits_dwcnn.onnx`` and its data, print a table.

    python launch/examples/train_digits.py           train (about two minutes on two cores), export, print
    python launch/examples/train_digits.py --table   print the table for the files that are there

Needs ``distune[torch]`` to train; the table needs ONNX Runtime only.

Why default int8 fails on it: in trained MobileNets some channels behind a depthwise convolution end up with a tiny
batch-norm scale, and the pointwise convolution that follows makes up for it with large weights (Nagel et al.,
arXiv:1906.04721, section 3). One scale for all input channels of an output channel then leaves few of the 255 levels
to the weights of all the other channels. A net this small, trained for a minute, has no time to drift there by itself,
so ``FAINT`` starts two blocks in that state: the network computes the same function as without it, the scales of the
two batch norms are not trained, everything else is, and nothing is touched after training.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from digits_data import Part, parts
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
MODEL = HERE / "digits_dwcnn.onnx"

STEM = 16
BLOCKS = ((16, 128, 1), (128, 128, 1), (128, 128, 2), (128, 64, 2), (64, 64, 1))
"""Input channels, output channels and stride of each depthwise-separable block; 26 million multiply-adds in all."""

FAINT = {"block3": (2, 400.0), "block4": (2, 600.0)}
"""By block: how many channels behind its depthwise convolution are faint, and how many times fainter they are."""

SEED, EPOCHS, BATCH, PEAK_RATE = 7, 20, 50, 1e-2


def main(argv: Sequence[str] | None = None) -> None:
    """Train, export and print, or only print."""
    parser = argparse.ArgumentParser(description="Make the embedded example or look at it.")
    parser.add_argument("--table", action="store_true", help="only print the table of the existing files")
    train, calibration, test = parts()
    if not parser.parse_args(argv).table:
        started = time.perf_counter()
        onnx.save(export(fit(train)), MODEL)
        calibration.save(HERE / "digits_calib.npz")
        test.save(HERE / "digits_test.npz")
        print(f"trained and exported in {time.perf_counter() - started:.0f} s")
    print_table(calibration, test)


# ---------------------------------------------------------------------------------------------------- training


def fit(train: Part) -> Any:
    """Train with Adam and a one-cycle schedule; shifts by up to two pixels are the only augmentation.

    Returns:
        The ``torch.nn.ModuleDict`` of the network, in evaluation mode.
    """
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(SEED)
    draw = torch.Generator().manual_seed(SEED)
    network = _network()
    _make_faint(network, draw)
    network = network.to(memory_format=torch.channels_last)
    images, labels = torch.from_numpy(pixels(train.images)), torch.from_numpy(train.labels)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained)
    steps = EPOCHS * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=draw).split(BATCH):
            shift = torch.randint(-2, 3, (2,), generator=draw).tolist()
            batch = torch.roll(images[rows], shift, (2, 3)).contiguous(memory_format=torch.channels_last)
            loss = cross_entropy(_forward(network, batch), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _network() -> Any:
    """Units of convolution, batch norm and ReLU by name, then the classifier ``fc``."""
    from torch import nn

    def unit(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    layers = {"stem": unit(1, STEM, 3)}
    for index, (inputs, outputs, stride) in enumerate(BLOCKS):
        layers[f"block{index}_dw"] = unit(inputs, inputs, 3, stride, groups=inputs)
        layers[f"block{index}_pw"] = unit(inputs, outputs, 1)
    layers["fc"] = nn.Linear(BLOCKS[-1][1], 10)
    return nn.ModuleDict(layers)


def _forward(network: Any, batch: Any) -> Any:
    for name, layer in network.items():
        if name != "fc":
            batch = layer(batch)
    return network["fc"](batch.mean((2, 3)))


def _make_faint(network: Any, draw: Any) -> None:
    """Scale channels down in a batch norm and up again in the weights that read them."""
    import torch

    for block, (channels, ratio) in FAINT.items():
        norm, pointwise = network[f"{block}_dw"][1], network[f"{block}_pw"][0]
        scale = torch.ones(norm.num_features)
        scale[torch.randperm(norm.num_features, generator=draw)[:channels]] = 1 / ratio
        with torch.no_grad():
            norm.weight.copy_(scale)
            pointwise.weight.div_(scale.view(1, -1, 1, 1))
        norm.requires_grad_(False)


# ---------------------------------------------------------------------------------------------------- export


def export(network: Any) -> onnx.ModelProto:
    """Opset 17, dynamic batch, batch norm folded into the convolutions, every node named after its layer."""
    nodes, constants, tensor = [], [], "input"

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value.detach().numpy()), name))
        return name

    for name, layer in network.items():
        if name == "fc":
            continue
        convolution, norm = layer[0], layer[1]
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        inputs = [
            tensor,
            constant(f"{name}.weight", convolution.weight * gain.view(-1, 1, 1, 1)),
            constant(f"{name}.bias", norm.bias - norm.running_mean * gain),
        ]
        attributes = {
            "kernel_shape": list(convolution.kernel_size),
            "strides": list(convolution.stride),
            "pads": [*convolution.padding, *convolution.padding],
            "group": convolution.groups,
        }
        nodes.append(helper.make_node("Conv", inputs, [f"{name}_sum"], name=name, **attributes))
        nodes.append(helper.make_node("Relu", [f"{name}_sum"], [f"{name}_out"], name=f"{name}_relu"))
        tensor = f"{name}_out"
    classifier = [constant("fc.weight", network["fc"].weight), constant("fc.bias", network["fc"].bias)]
    nodes.append(helper.make_node("GlobalAveragePool", [tensor], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"], name="flatten"))
    nodes.append(helper.make_node("Gemm", ["features", *classifier], ["logits"], name="fc", transB=1))
    graph = helper.make_graph(
        nodes,
        "digits_dwcnn",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


# ---------------------------------------------------------------------------------------------------- table


def pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stored images as the network wants them: float32 [N, 1, 32, 32] of 0..1."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 255


def print_table(calibration: Part, test: Part) -> None:
    """Accuracy and latency of the model in fp32, in int8 by ONNX Runtime's own tool, and with fallback by hand.

    Sessions run without the optimizer ``WeightBiasQuantization``, which would quantize the weights of a
    convolution that was kept in fp32 behind our back.
    """
    fp32 = _session(MODEL)
    baseline = _accuracy(fp32, test)
    print(f"{'model':<38} {'top-1':>7} {'change':>8} {'int8/fp32 latency':>18} {'KiB':>5}")
    print(f"{'fp32':<38} {baseline:>7.4f} {'':>8} {'':>18} {MODEL.stat().st_size // 1024:>5}")
    sensitive = [f"{block}_pw" for block in FAINT]
    cases: list[tuple[str, list[str], dict[str, Any]]] = [
        ("int8", [], {}),
        ("int8, weights per tensor", [], {"per_channel": False}),
        ("int8, activations int8", [], {"signed": True}),
        *((f"int8, {name} in fp32", [name], {}) for name in sensitive),
        (f"int8, {' and '.join(sensitive)} in fp32", sensitive, {}),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        for title, fallback, scheme in cases:
            _quantize(path, calibration, fallback, **scheme)
            session = _session(path)
            accuracy = _accuracy(session, test)
            change = (accuracy - baseline) / baseline
            ratio = _latency_ratio(session, fp32, pixels(test.images[:1]))
            size = path.stat().st_size // 1024
            print(f"{title:<38} {accuracy:>7.4f} {change:>8.2%} {ratio:>18.2f} {size:>5}")


def _quantize(
    path: Path, calibration: Part, fallback: Sequence[str], per_channel: bool = True, signed: bool = False
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            images = pixels(calibration.images)
            self._feeds = iter([{"input": images[start : start + 20]} for start in range(0, len(images), 20)])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._feeds, None)

    logging.disable(logging.WARNING)  # the tool advises a preprocessing that this graph does not need
    quantize_static(
        MODEL,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        nodes_to_exclude=[node for name in fallback for node in (name, f"{name}_relu")],
        per_channel=per_channel,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    logging.disable(logging.NOTSET)


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, disabled_optimizers=["WeightBiasQuantization"])


def _accuracy(session: ort.InferenceSession, part: Part) -> float:
    images = pixels(part.images)
    batches = [images[start : start + 100] for start in range(0, len(images), 100)]
    predicted = np.concatenate([session.run(None, {"input": batch})[0].argmax(1) for batch in batches])
    return float(np.mean(predicted == part.labels))


def _latency_ratio(
    candidate: ort.InferenceSession, baseline: ort.InferenceSession, image: NDArray[np.float32]
) -> float:
    """Median of paired ratios over alternating blocks at batch 1, one thread."""

    def block(session: ort.InferenceSession) -> float:
        started = time.perf_counter()
        for _ in range(10):
            session.run(None, {"input": image})
        return time.perf_counter() - started

    return float(np.median([block(candidate) / block(baseline) for _ in range(41)]))


if __name__ == "__main__":
    main()
