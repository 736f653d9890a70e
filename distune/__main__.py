"""``python -m distune``."""

from __future__ import annotations

from distune.cli.main import entry

if __name__ == "__main__":
    entry()
