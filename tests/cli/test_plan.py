"""``distune plan``: what would be done, without doing it."""

from __future__ import annotations

from pathlib import Path

from tests.cli.jobs import distune

EXAMPLE = Path(__file__).parents[2] / "launch" / "examples" / "digits.yaml"


def test_it_tells_the_space_the_stages_and_the_time(tmp_path: Path) -> None:
    result = distune(tmp_path, "plan", str(EXAMPLE), "--ranks", "1,4")
    assert result.returncode == 0, result.stderr
    for words in ("12 with weights", "Conv", "4 ranks", "op-type-wise", "instance-wise fallback to fp32", "fp32"):
        assert words in result.stdout
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_number_of_ranks_must_be_one(tmp_path: Path) -> None:
    result = distune(tmp_path, "plan", str(EXAMPLE), "--ranks", "0")
    assert result.returncode == 2
    assert "expected numbers of ranks" in result.stderr


def test_more_ranks_than_can_be_simulated_are_refused(tmp_path: Path) -> None:
    result = distune(tmp_path, "plan", str(EXAMPLE), "--ranks", "1,8,1000000")
    assert result.returncode == 2
    assert "at most 2048 ranks can be simulated, got 1000000" in result.stderr
