"""Apply a saved tuning_config.yaml to an fp32 model; needs no data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The saved config, the fp32 model, and where the quantized one goes."""
    parser.add_argument("tuning_config", type=Path, help="best/tuning_config.yaml of a finished run")
    parser.add_argument(
        "--model", required=True, help="the fp32 model that it is applied to: a file, or file.py:builder for PyTorch"
    )
    parser.add_argument("--weights", type=Path, help="PyTorch: the weights of what the builder builds")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="PyTorch: pickle, which runs code in a file, may read the weights"
    )
    parser.add_argument("--output", type=Path, required=True, help="file of the quantized model")
    parser.add_argument("--example-inputs", help="PyTorch: file.py:name of inputs that the module is exported with")
    parser.add_argument(
        "--format",
        choices=("pt2", "onnx", "state"),
        help="PyTorch: a torch.export archive, ONNX in QDQ form or the quantized weights; else told from the ending of "
        "--output (.onnx, .pt, anything else is pt2)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Write the quantized model."""
    from distune.backends.base import backend_class
    from distune.config.imports import split_reference
    from distune.config.job import Approach, ModelSpec, TuningJob
    from distune.distributed.files import files_of
    from distune.errors import TrialError, UsageError
    from distune.report.saving import named_after, write_model
    from distune.report.tuning_config import ARRAYS_FILE, SavedConfig

    saved = SavedConfig.load(arguments.tuning_config)
    location, builder = split_reference(arguments.model)
    if not builder and not Path(location).is_file():
        raise UsageError(f"--model {arguments.model}: no such file")
    if arguments.weights is not None and not arguments.weights.is_file():
        raise UsageError(f"--weights {arguments.weights}: no such file")
    output: Path = arguments.output
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: its folder does not exist")
    spec = ModelSpec(
        saved.framework,
        arguments.model if builder else str(Path(location).resolve()),
        quant_format=saved.quant_format,
        weights="" if arguments.weights is None else str(arguments.weights.resolve()),
        example_inputs=arguments.example_inputs or saved.deploy.get("example_inputs"),
        trust_pickle=arguments.trust_pickle,
        parts=saved.deploy.get("parts"),
    )
    if arguments.format is not None and saved.framework != "pytorch":
        raise UsageError(f"--format is for PyTorch models; this config is of framework {saved.framework}")
    approach: Approach = "qat" if "trained" in saved.deploy else "static"
    job = TuningJob(spec, approach=approach, recipes=dict(saved.config.recipes))
    backend = backend_class(saved.framework, approach)(job)
    try:
        exported = backend.apply(saved.deploy, saved.config)
    except (KeyError, TrialError) as error:
        raise UsageError(f"{arguments.tuning_config} does not fit {arguments.model}: {error.args[0]}") from error
    finally:
        backend.close()
    files = exported.files if saved.framework != "pytorch" else _of_format(exported.files, arguments.format, output)
    content = named_after(output.absolute(), files)
    saved_files = (arguments.tuning_config, arguments.tuning_config.with_name(ARRAYS_FILE))
    write_model(content, [*saved_files, Path(location), *files_of(job)])
    size = sum(map(len, content.values()))
    print(f"{output}: {size:,} bytes, {len(saved.config.quantized_ops)} ops quantized", file=sys.stderr)
    return 0


def _of_format(files: Mapping[str, bytes], wanted: str | None, output: Path) -> dict[str, bytes]:
    """The one file of the form that was asked for, or that the name of the output tells."""
    form = wanted or {".onnx": "onnx", ".pt": "state"}.get(output.suffix, "pt2")
    if form == "onnx":
        from distune.backends.pytorch.onnx_export import archive_to_onnx

        return {"model.onnx": archive_to_onnx(files["model.pt2"])}
    name = {"pt2": "model.pt2", "state": "state.pt"}[form]
    return {name: files[name]}
