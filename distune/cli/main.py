"""The command line: finds the verb, turns errors into messages and exit codes.

Exit codes: 0 met or not judged, 1 internal error, 2 wrong configuration or usage, 3 finished without meeting the
criterion, 4 budget spent before it was met, 75 interrupted (run again to resume).
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from distune import __version__
from distune.errors import DistuneError, UsageError

VERBS = (
    *("init", "validate", "schema", "plan", "run"),
    *("report", "compare", "inspect", "export", "benchmark"),
    *("strategies", "doctor", "slurm"),
)
"""One module of this package each, with ``add_arguments`` and ``main``; listed in the order of the help text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = import_module(f"distune.cli.{arguments.verb}").main(arguments)
    except UsageError as error:
        print(f"distune: {error}", file=sys.stderr)
        return 2
    except DistuneError as error:
        print(f"distune: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("distune: interrupted", file=sys.stderr)
        return 75
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        traceback.print_exc()
        print("distune: this is a defect of distune; please report it with the lines above", file=sys.stderr)
        return 1
    return code


def entry() -> NoReturn:
    """Entry point of ``distune`` and ``python -m distune``."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distune",
        description="Finds the fastest quantized model that provably keeps the accuracy.",
        epilog="Under MPI: mpirun -np 8 python -m distune run cfg.yaml",
        allow_abbrev=False,  # ``run`` looks for --np among the words that were typed, and finds whole ones
    )
    parser.add_argument("--version", action="version", version=f"distune {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        module = import_module(f"distune.cli.{name}")
        summary = (module.__doc__ or "").strip().splitlines()[0]
        verb = verbs.add_parser(name, help=summary, description=module.__doc__, allow_abbrev=False)
        module.add_arguments(verb)
    return parser
