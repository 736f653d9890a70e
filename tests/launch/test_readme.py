"""What the README shows is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from distune.cli.main import main
from distune.report.result import RunResult
from tests.cli.jobs import judged

README = Path(__file__).resolve().parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    """The README's code blocks in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def test_the_strategy_of_one_s_own_runs_and_finds_the_bad_op(tmp_path: Path) -> None:
    job = judged(tmp_path, "fc2")
    (tmp_path / "flip.py").write_text(next(block for block in blocks("python") if "FlipTuneStrategy" in block))
    block = yaml.safe_load(next(block for block in blocks("yaml") if "module: flip.py" in block))
    job.document["tuning"].update(block["tuning"])
    assert main(job.arguments("--quiet")) == 0
    result = RunResult.from_json((job.workspace / "result.json").read_text())
    assert result.strategy == "flip"
    assert "fc2" in (result.best.fallback_ops if result.best else ())


def test_every_yaml_block_is_valid(tmp_path: Path) -> None:
    for index, block in enumerate(blocks("yaml")):
        document = yaml.safe_load(block)
        document.pop("model", None)  # a fragment: the files that it would name are the reader's
        path = tmp_path / f"block{index}.yaml"
        path.write_text(yaml.safe_dump(document))
        assert main(["validate", str(path)]) == 0


def test_every_python_block_compiles() -> None:
    for block in blocks("python"):
        compile(block, "README.md", "exec")
