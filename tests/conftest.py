"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing on a shared machine; hanging is what pytest's own timeout is for.
settings.register_profile("distune", deadline=None)
settings.load_profile("distune")


def assets_path() -> Path | None:
    """Folder of the real models and data: ``DISTUNE_ASSETS``, else ``../shared/assets`` beside the checkout."""
    named = os.environ.get("DISTUNE_ASSETS")
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "assets"
    return path if (path / "models").is_dir() else None


@pytest.fixture(scope="session")
def assets() -> Path:
    """The assets folder; skips where there is none (``.ci/run`` fails when that happens)."""
    path = assets_path()
    if path is None:
        pytest.skip("no assets: set DISTUNE_ASSETS to the folder with models/ and data/")
    return path
