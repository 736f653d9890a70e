"""Sessions: one set of options for calibration, judging and deployment, and what ONNX Runtime makes of a graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

if TYPE_CHECKING:  # not at run time: the process that measures a footprint must not hold onnx
    import onnx

SESSION_OPTIONS: Mapping[str, Any] = {
    "providers": ["CPUExecutionProvider"],
    "execution_mode": "ORT_SEQUENTIAL",
    "graph_optimization_level": "ORT_ENABLE_ALL",
    "inter_op_num_threads": 1,
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
}
"""What every session is created with; the number of intra-op threads is given apart. Recorded in the result."""

_QUIET = 3


def create_session(model: bytes | str | onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    """A session with ``SESSION_OPTIONS`` and ``threads`` intra-op threads.

    Args:
        model: The model itself, its bytes, or its file, whose external data is then mapped into memory, so that
            sessions of several processes share its pages.
    """
    with _loadable(model) as source:
        return ort.InferenceSession(source, _options(threads), providers=SESSION_OPTIONS["providers"])


def optimized_graph(
    model: bytes | onnx.ModelProto, level: str = "ORT_ENABLE_ALL", disabled_optimizers: Sequence[str] = ()
) -> onnx.ModelProto:
    """The graph that ONNX Runtime would execute (or, at a lower ``level``, a portable simplification of it).

    ONNX Runtime can only write it to a file: it goes into a temporary folder that is gone on return.
    """
    import onnx

    options = _options(1)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    with _loadable(model) as source, tempfile.TemporaryDirectory(prefix="distune-") as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        if isinstance(source, str):  # too large for one message, so is the outcome
            key = "session.optimized_model_external_initializers_"
            options.add_session_config_entry(f"{key}file_name", "optimized.data")
            options.add_session_config_entry(f"{key}min_size_in_bytes", "1024")
        ort.InferenceSession(
            source, options, providers=SESSION_OPTIONS["providers"], disabled_optimizers=list(disabled_optimizers)
        )
        return onnx.load(path)


@contextmanager
def _loadable(model: bytes | str | onnx.ModelProto) -> Iterator[bytes | str]:
    """What ONNX Runtime loads a model from: bytes, or a file, a temporary one where the model is too large for bytes.

    ONNX Runtime keeps the weights of such a file mapped or read; the file itself may go once the session exists.
    """
    if isinstance(model, bytes | str):
        yield model
        return
    from distune.backends.onnxruntime.storage import is_large, write

    if not is_large(model):
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="distune-") as folder:
        yield str(write(model, Path(folder)))


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = SESSION_OPTIONS["inter_op_num_threads"]
    options.execution_mode = getattr(ort.ExecutionMode, SESSION_OPTIONS["execution_mode"])
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, SESSION_OPTIONS["graph_optimization_level"])
    options.log_severity_level = _QUIET
    for key, value in SESSION_OPTIONS.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    return options
