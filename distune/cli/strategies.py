"""List the strategies and their settings."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def main(arguments: argparse.Namespace) -> int:
    """Print each strategy with the first sentence of its description and its ``strategy_kwargs``."""
    from distune.strategies.registry import strategies

    for name, cls in strategies().items():
        summary = (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
        print(f"{name}\n    {summary}")
        for setting, meaning in cls.settings.items():
            print(f"    {setting}: {meaning}")
    return 0
