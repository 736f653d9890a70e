"""What the verbs share about the configuration file: its arguments and how it is read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distune.config.load import LoadedConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file and what overrides it."""
    parser.add_argument("config", type=Path, metavar="cfg.yaml", help="the configuration file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override a key, e.g. tuning.strategy.name=mse; may be given several times",
    )


def read(arguments: argparse.Namespace) -> LoadedConfig:
    """Load and validate the file; its warnings go to standard error.

    Raises:
        ConfigError: Lists every problem.
    """
    from distune.api.names import known_names
    from distune.config.load import load_config

    loaded = load_config(arguments.config, arguments.set, known_names())
    for warning in loaded.warnings:
        print(f"distune: warning: {warning}", file=sys.stderr)
    return loaded
