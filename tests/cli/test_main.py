"""What every verb has in common."""

from __future__ import annotations

import pytest

from distune.cli.main import VERBS, main


@pytest.mark.parametrize(
    "line", [("run", "cfg.yaml", "--n", "2"), ("plan", "cfg.yaml", "--rank", "2"), ("report", ".", "--out", "x")]
)
def test_half_an_option_is_no_option(line: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line)
    assert caught.value.code == 2
    assert f"unrecognized arguments: {' '.join(line[2:])}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_wants_whole_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--hel"])
    assert caught.value.code == 2
