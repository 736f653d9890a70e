"""The embedded example decides the same, whether its ranking trials run as a whole or from cuts."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.backends.onnxruntime.prefix import Suffix
from distune.cli.main import main
from tests.cli.jobs import ROOT
from tests.cli.same import assert_same

DIGITS = ROOT / "launch" / "examples" / "digits.yaml"


@pytest.mark.full
@pytest.mark.timeout(600)
def test_decisions_of_the_embedded_example_are_those_of_whole_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[bool] = []
    prove = Suffix._prove

    def counted(self, *arguments):  # type: ignore[no-untyped-def]
        found = prove(self, *arguments)
        cut.append(found is not None)
        return found

    monkeypatch.setattr(Suffix, "_prove", counted)
    for name, limit in (("whole", 0), ("suffix", 512)):
        settings = (f"tuning.shared_prefix={limit}", "tuning.isolation=none", "tuning.exit_policy.max_trials=40")
        options = [word for setting in settings for word in ("--set", setting)]
        assert main(["run", str(DIGITS), "--workspace", str(tmp_path / name), "--quiet", *options]) == 0
        assert any(cut) == bool(limit)
    assert_same(tmp_path / "whole", tmp_path / "suffix")
