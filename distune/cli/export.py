"""Apply a saved tuning_config.yaml to an fp32 model; needs no data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The saved config, the fp32 model, and where the quantized one goes."""
    parser.add_argument("tuning_config", type=Path, help="best/tuning_config.yaml of a finished run")
    parser.add_argument("--model", type=Path, required=True, help="the fp32 model that it is applied to")
    parser.add_argument("--output", type=Path, required=True, help="file of the quantized model")


def main(arguments: argparse.Namespace) -> int:
    """Write the quantized model."""
    from distune.backends.base import backend_class
    from distune.config.job import ModelSpec, TuningJob
    from distune.errors import UsageError
    from distune.journal.files import write_file
    from distune.report.tuning_config import SavedConfig

    saved = SavedConfig.load(arguments.tuning_config)
    if not arguments.model.is_file():
        raise UsageError(f"--model {arguments.model}: no such file")
    output: Path = arguments.output
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: its folder does not exist")
    spec = ModelSpec(saved.framework, str(arguments.model.resolve()), quant_format=saved.quant_format)
    backend = backend_class(saved.framework)(TuningJob(spec, recipes=dict(saved.config.recipes)))
    try:
        exported = backend.apply(saved.deploy, saved.config)
    except KeyError as error:
        raise UsageError(f"{arguments.tuning_config} does not fit {arguments.model}: {error.args[0]}") from error
    finally:
        backend.close()
    (_, content), *others = exported.files.items()
    write_file(output, content)
    for name, extra in others:
        write_file(output.with_name(name), extra)
    print(f"{output}: {len(content):,} bytes, {len(saved.config.quantized_ops)} ops quantized", file=sys.stderr)
    return 0
