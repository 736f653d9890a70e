"""The page as a text: self-contained, escaped, small."""

from __future__ import annotations

import json
import re
from pathlib import Path

from distune.report.evidence import Evidence
from distune.report.html.page import render
from tests.report.workspaces import killed_run

EVIL = "<script>alert(1)</script>&\"'"


def data_of(page: str) -> dict[str, object]:
    """The JSON that the page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    content: dict[str, object] = json.loads(found.group(1))
    return content


def test_text_of_the_user_is_escaped(tmp_path: Path) -> None:
    page = render(Evidence.read(killed_run(tmp_path, [EVIL, "b"], [0.5, 0.895])))
    assert EVIL not in page
    assert "<script>alert" not in page
    assert data_of(page)["ops"] == [[EVIL, "Conv", EVIL], ["b", "Conv", "b"]]


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    page = render(Evidence.read(killed_run(tmp_path, ["a"], [0.5])))
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page) == []
    assert re.findall(r"url\(|@import|fetch\(|XMLHttpRequest", page) == []
    assert "default-src 'none'" in page


def test_a_long_run_of_a_large_model_stays_small(tmp_path: Path) -> None:
    names = [f"encoder/layer.{i // 6}/attention/self/op_{i}" for i in range(300)]
    accuracies = [0.5 + 0.0001 * i for i in range(1000)]
    page = render(Evidence.read(killed_run(tmp_path, names, accuracies)))
    assert len(page.encode()) < 5_000_000
    assert len(data_of(page)["trials"]) == 1000  # type: ignore[arg-type]


def test_what_was_not_measured_is_no_number(tmp_path: Path) -> None:
    data = data_of(render(Evidence.read(killed_run(tmp_path, ["a"], [0.5, float("nan")]))))
    trials = data["trials"]
    assert isinstance(trials, list)
    assert (trials[0]["ratio"], trials[1]["accuracy"]) == (None, None)
