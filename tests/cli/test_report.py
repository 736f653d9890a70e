"""``distune report``: the files that tell of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.cli.main import main
from tests.report.workspaces import killed_run


def test_who_reads_an_older_report_reads_it_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace, folder = killed_run(tmp_path / "run", ["conv_a", "conv_b"], [0.5, 0.895]), tmp_path / "told"
    folder.mkdir()
    names = ("report.html", "trials.csv")
    for name in names:
        (folder / name).write_text("older")
    readers = [(folder / name).open() for name in names]
    assert main(["report", str(workspace), "--output", str(folder)]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.split()] == list(names)
    for reader in readers:
        with reader:
            assert reader.read() == "older"
    assert "conv_a" in (folder / "report.html").read_text()
    assert "instance-wise" in (folder / "trials.csv").read_text()
    assert sorted(path.name for path in folder.iterdir()) == list(names)


def test_where_it_cannot_be_written_the_old_one_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = killed_run(tmp_path / "run", ["conv_a", "conv_b"], [0.5, 0.895])
    (workspace / "report.html").mkdir()
    assert main(["report", str(workspace)]) == 2
    assert f"cannot write the report to {workspace}" in capsys.readouterr().err
