"""``python -m distune``, and the command ``distune``."""

from __future__ import annotations

from distune.cli.early import end_quietly_when_asked


def main() -> None:
    """Take signals first: the imports of the command line are what takes time."""
    end_quietly_when_asked()
    from distune.cli.main import entry

    entry()


if __name__ == "__main__":
    main()
