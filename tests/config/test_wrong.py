"""What a user sees of a wrong configuration: every problem, its exact place, and a hint; never a traceback's words."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from distune.config.load import load_config
from distune.errors import ConfigError, UsageError
from tests.config.conftest import KNOWN, Load
from tests.config.documents import COMPLETE
from tests.config.wrong import CORPUS, MARK, Wrong


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and the line and column of each."""
    places = []
    lines = text.split("\n")
    for index in range(len(lines)):
        while MARK in lines[index]:
            places.append((index + 1, lines[index].index(MARK) + 1))
            lines[index] = lines[index].replace(MARK, "", 1)
    return "\n".join(lines), places


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_every_problem_is_named_with_its_place(case: Wrong, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text, places = marked(case.text)
    Path("cfg.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("cfg.yaml", (), KNOWN, {})
    assert isinstance(caught.value, UsageError)  # exit code 2
    message = str(caught.value)
    heads = re.findall(r"^cfg\.yaml:(\d+):(\d+): (.*)$", message, re.MULTILINE)
    assert [(int(line), int(column)) for line, column, _ in heads] == places, message
    for (_, _, head), hint in zip(heads, case.hints, strict=True):
        assert hint in head
    assert not re.search(r"pydantic|Input should|type=|validation error|Traceback", message), message


def test_the_caret_stands_under_what_is_meant(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load("quantization:\n  model_wise:\n    activation: {dtype: 'int8, fp33'}\n")
    line, caret = str(caught.value).splitlines()[-2:]
    assert line[caret.index("^") : caret.rindex("^") + 1] == "fp33"


def test_the_number_of_problems_is_told_first(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"cfg\.yaml: 2 problems in the configuration\n"):
        load("tuning: {zzz: 1}\ndevice: tpu\n")


def test_an_override_is_named_as_it_was_typed(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load("tuning: {strategy: basic}", "tuning.strategy.name=basik", "tuning.exit_policy.timeout=soon")
    message = str(caught.value)
    assert "--set tuning.strategy.name=basik: tuning.strategy.name: unknown strategy 'basik'; did you mean" in message
    assert "--set tuning.exit_policy.timeout=soon: tuning.exit_policy.timeout: expected a number, got 'soon'" in message


@pytest.mark.parametrize("override", ["tuning", "=1", "tuning..name=1", "a.=1"])
def test_an_override_without_key_or_value_is_refused(load: Load, override: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--set {override}: expected key.path=value")):
        load("tuning: {}", override)


def test_a_file_that_is_not_there_names_its_neighbour(folder: Path) -> None:
    (folder / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"there is no such file; did you mean 'config\.yaml'\?"):
        load_config(folder / "confg.yaml")


def test_what_is_no_text_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(folder)
    (folder / "cfg.yaml").write_bytes(b"tuning: \xff\xfe")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 8\)"):
        load_config(folder / "cfg.yaml")


def test_aliases_that_contain_themselves_or_multiply_are_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match="contains itself"):
        load("tuning: &a {strategy: *a}")
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="too many values"):
        load("\n".join(levels))


def test_a_fragment_is_no_job(load: Load) -> None:
    fragment = load("tuning: {strategy: basic}")
    assert fragment.is_fragment
    with pytest.raises(ConfigError, match="'model' is missing"):
        fragment.job()


ODD = (
    "",
    "[]",
    "{}",
    "{a: 1}",
    "[1,[2]]",
    "-1",
    ".nan",
    "true",
    "2021-01-01",
    "'%'",
    "!!set {a}",
    "${",
    "~~/y",
    "1e400",
)


@pytest.mark.parametrize("seed", range(5))
def test_no_file_however_odd_ends_in_anything_but_a_config_error(load: Load, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        lines = COMPLETE.splitlines()
        index = chance.randrange(len(lines))
        values = list(re.finditer(r": +([^\s{}\[\],][^{}\[\],]*|\{[^{}]*\}|\[[^\]]*\])", lines[index]))
        if values and chance.random() < 0.8:
            start, end = chance.choice(values).span(1)
            lines[index] = lines[index][:start] + chance.choice(ODD) + lines[index][end:]
        else:
            del lines[index]
        message = ""
        try:
            loaded = load("\n".join(lines))
            assert loaded.is_fragment or loaded.job().model.framework
        except ConfigError as error:
            message = str(error)
        assert not re.search("pydantic|Input should|something else|Value error", message)
