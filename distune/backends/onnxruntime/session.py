"""Sessions: one set of options for calibration, judging and deployment, and what ONNX Runtime makes of a graph."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

if TYPE_CHECKING:  # not at run time: the process that measures a footprint must not hold onnx
    import onnx

    from distune.backends.onnxruntime.shared import LightModel

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
        model: The model itself, its bytes, or its file. Weights outside of it (external data, or a light model's) are
            mapped into memory, so that sessions of several processes share the pages of those that ONNX Runtime does
            not repack.
    """
    options = _options(threads)
    with _loadable(model, options) as source:
        return ort.InferenceSession(source, options, providers=SESSION_OPTIONS["providers"])


def return_freed_memory() -> None:
    """Give memory that this process has freed back to the system, which glibc does not do by itself.

    Copies of graphs, and weights that ONNX Runtime has repacked, leave holes as large as the model.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # another C library
        trim(0)


def optimized_graph(
    model: bytes | onnx.ModelProto, level: str = "ORT_ENABLE_ALL", disabled_optimizers: Sequence[str] = ()
) -> onnx.ModelProto:
    """The graph that ONNX Runtime would execute, or, at a lower ``level``, a portable simplification of it.

    It tells what runs; the bytes of larger weights may be left out where ``model`` is not given as bytes.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="distune-") as folder:
        path = _write_optimized(model, level, disabled_optimizers, Path(folder))
        return onnx.load(path, load_external_data=False)


def optimized_model(
    model: bytes | onnx.ModelProto, level: str = "ORT_ENABLE_ALL", disabled_optimizers: Sequence[str] = ()
) -> LightModel:
    """The same as a whole model.

    ONNX Runtime can only write it to a file: it goes into a temporary folder that is gone on return.
    """
    import onnx

    from distune.backends.onnxruntime.shared import LightModel, adopted

    with tempfile.TemporaryDirectory(prefix="distune-") as folder:
        # The outcome refers to the files of a light model, which have to last until it keeps them itself.
        light = None if isinstance(model, bytes) else LightModel(model, shared=True)
        path = _write_optimized(light.proto if light else model, level, disabled_optimizers, Path(folder))
        with adopted(onnx.load(path, load_external_data=False), Path(folder)) as outcome:
            return LightModel(outcome, shared=True)


def _write_optimized(
    model: bytes | onnx.ModelProto, level: str, disabled_optimizers: Sequence[str], folder: Path
) -> Path:
    from distune.backends.onnxruntime.storage import is_large

    options = _options(1)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    path = folder / "optimized.onnx"
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.disable_prepacking", "1")  # nothing will be run
    if not isinstance(model, bytes) and is_large(model):  # so is the outcome; ONNX Runtime then orders nodes otherwise
        key = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{key}file_name", "optimized.data")
        options.add_session_config_entry(f"{key}min_size_in_bytes", "1024")
    with _loadable(model, options) as source:
        ort.InferenceSession(
            source, options, providers=SESSION_OPTIONS["providers"], disabled_optimizers=list(disabled_optimizers)
        )
    return path


@contextmanager
def _loadable(model: bytes | str | onnx.ModelProto, options: ort.SessionOptions) -> Iterator[bytes | str]:
    """What ONNX Runtime loads a model from: its file, or bytes, with larger weights in files that ``options`` tell of.

    ONNX Runtime maps the files; they may go once the session exists.
    """
    if isinstance(model, bytes | str):
        yield model
        return
    from distune.backends.onnxruntime.shared import LightModel

    light = LightModel(model)
    if light.folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", light.folder)
    try:
        yield light.proto.SerializeToString()
    finally:
        light.close()


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
