"""Every test of this room has a folder and options of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distune.config.process_options import Options, options


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The process stands in a temporary folder, where the default workspace goes."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    options.__dict__.update(Options().__dict__)
