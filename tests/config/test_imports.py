"""User code is found by ``module:name`` and ``file.py:name``, once, and its errors are the user's."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from distune.config.imports import import_module_or_file, import_object
from distune.errors import UsageError, UserCodeError


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the process stands in, with user code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper_of_score.py").write_text("VALUE = 3\n")
    (tmp_path / "score.py").write_text(
        "from helper_of_score import VALUE\n"
        "class Scorer:\n    @staticmethod\n    def best():\n        return VALUE\n"
        "def evaluate(model):\n    return VALUE\n"
    )
    (tmp_path / "broken.py").write_text("def ratio():\n    return 1 / 0\nratio()\n")
    return tmp_path


def test_files_relative_and_absolute_give_the_same_object(code: Path) -> None:
    found = import_object("score.py:evaluate", "eval_func")
    assert found(None) == 3
    assert import_object(f"{code}/score.py:evaluate", "eval_func") is found
    assert import_object(os.path.join(".", "score.py") + ":evaluate", "eval_func") is found
    assert pickle.loads(pickle.dumps(found)) is found


def test_modules_and_dotted_names(code: Path) -> None:
    assert import_object("json:dumps", "eval_func")({}) == "{}"
    assert import_object("score.py:Scorer.best", "eval_func")() == 3
    assert import_module_or_file("json", "strategy").__name__ == "json"
    assert import_module_or_file("score.py", "strategy").VALUE == 3


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("score.py:evaluat", "no 'evaluat' in score.py .*did you mean 'evaluate'?"),
        ("scor.py:evaluate", "there is no file .*scor.py; did you mean score.py?"),
        ("no_such_module_here:f", "there is no module 'no_such_module_here'"),
        ("json.no_such_part:f", "there is no module 'json.no_such_part'"),
        ("evaluate", "does not name an object; write module:name or file.py:name"),
        ("a b:f", "neither a module name nor a file"),
    ],
)
def test_what_is_not_found_is_named_with_what_is_near(code: Path, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        import_object(name, "eval_func")
    assert str(caught.value).startswith("eval_func: ")


def test_a_module_that_raises_shows_the_users_frames_only(code: Path) -> None:
    with pytest.raises(UserCodeError) as caught:
        import_object("broken.py:ratio", "eval_func")
    message = str(caught.value)
    assert "broken.py raises when it is imported" in message
    assert "ZeroDivisionError" in message
    assert 'broken.py", line 2, in ratio' in message
    assert "importlib" not in message
    assert "distune" not in message
    with pytest.raises(UserCodeError):  # and again: nothing half-imported is left behind
        import_object("broken.py:ratio", "eval_func")


def test_a_missing_import_inside_user_code_is_the_users_error(code: Path) -> None:
    (code / "needs.py").write_text("import package_that_is_not_installed\n")
    with pytest.raises(UserCodeError, match="package_that_is_not_installed"):
        import_object("needs.py:f", "eval_func")


def test_a_script_that_ends_itself_does_not_end_the_run(code: Path) -> None:
    (code / "script.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UserCodeError, match="SystemExit"):
        import_object("script.py:f", "eval_func")
