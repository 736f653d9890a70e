"""Write a first, commented configuration for an ONNX model and say what is left to fill in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and the file to write."""
    parser.add_argument("model", type=Path, help="the fp32 model, an .onnx file")
    parser.add_argument("--output", type=Path, help="configuration to write (default: MODEL.yaml here; - prints it)")


def main(arguments: argparse.Namespace) -> int:
    """Write the file; one that is there already is kept."""
    from distune.api.starter import sketch, starter
    from distune.errors import UsageError

    output: Path = arguments.output or Path(f"{arguments.model.stem}.yaml")
    on_screen = str(output) == "-"
    text, gaps = starter(sketch(arguments.model), Path.cwd() if on_screen else output.parent)
    if on_screen:
        print(text, end="")
    else:
        try:
            with output.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise UsageError(f"{output} is there already; name another file with --output") from error
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror or error}") from error
        print(f"{output} is written.", file=sys.stderr)
    print("Left to fill in:", file=sys.stderr)
    for gap in gaps:
        print(f"  - {gap}", file=sys.stderr)
    if not on_screen:
        print(f"Then: python -m distune validate {output}", file=sys.stderr)
    return 0
