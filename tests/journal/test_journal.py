"""The journal survives what a crash can do to it, and notices everything else."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distune import __version__
from distune.errors import JournalError
from distune.journal import Journal, read_records
from distune.journal.journal import parse

HEADER = {"signature": {"seed": 1}}
DATA = st.fixed_dictionaries({"stage": st.text(max_size=9), "accuracy": st.floats(), "n": st.integers()})


def write(path: Path, count: int = 3) -> bytes:
    with Journal.open(path, HEADER) as journal:
        for index in range(count):
            journal.append("decision", {"trial": index, "accuracy": index / 7, "crc": '"crc":"00000000"}'})
    return path.read_bytes()


def test_what_was_committed_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path, HEADER) as journal:
        assert not journal.resumed
        journal.append("result", {"value": math.nan})
        journal.append("note", {"text": "warm"})
        journal.commit()
    with Journal.open(path, {"signature": "another"}) as journal:
        assert journal.resumed
        assert journal.warnings == ()
        assert journal.header == HEADER
        assert journal.written_by == __version__
        assert [record.kind for record in journal.records()] == ["header", "result", "note"]
        assert math.isnan(journal.records("result")[0].data["value"])
        journal.append("note", {})
        assert journal.records()[-1].seq == 3


def test_nothing_is_written_before_commit_and_all_of_it_after(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path, HEADER) as journal:
        journal.append("result", {"n": 1})
        journal.append("result", {"n": 2})
        assert len(read_records(path)) == 1
        assert len(journal.records("result")) == 2
        journal.commit()
        assert read_records(path) == journal.records()


def test_later_changes_of_what_was_appended_do_not_reach_the_journal(tmp_path: Path) -> None:
    values = {"ops": ["a"]}
    with Journal.open(tmp_path / "j", HEADER) as journal:
        journal.append("note", values)
        values["ops"].append("b")
        assert journal.records("note")[0].data == {"ops": ["a"]}


def test_a_journal_cut_at_any_byte_of_its_last_line_resumes(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = write(path)
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal.open(path, HEADER) as journal:
            kept = journal.records("decision")
            complete = cut == len(whole) - 1  # only the newline is missing: the record is all there
            assert len(kept) == (3 if complete else 2)
            assert bool(journal.warnings) == (last < cut and not complete)
            journal.append("decision", {"again": True})
        assert [record.seq for record in read_records(path)] == list(range(len(kept) + 2))


@settings(max_examples=150, deadline=None)
@given(records=st.lists(DATA, min_size=1, max_size=4), garbage=st.binary(max_size=40))
def test_garbage_behind_the_last_record_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], garbage: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.jsonl"
    path.unlink(missing_ok=True)
    with Journal.open(path, HEADER) as journal:
        for data in records:
            journal.append("decision", data)
    whole = path.read_bytes()
    path.write_bytes(whole + garbage)
    with Journal.open(path, HEADER) as journal:
        assert len(journal.records("decision")) == len(records)
        assert bool(journal.warnings) == bool(garbage)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("flip", [1, 0x20, 0x80])
def test_a_flipped_byte_before_the_last_line_is_an_error_that_names_the_line(tmp_path: Path, flip: int) -> None:
    path = tmp_path / "journal.jsonl"
    whole = write(path)
    last = whole.rindex(b"\n", 0, -1) + 1
    for index in range(last):
        damaged = bytearray(whole)
        damaged[index] ^= flip
        with pytest.raises(JournalError, match=r"line \d: .*--fresh") as caught:
            parse(bytes(damaged), path)
        named = int(re.search(r"line (\d)", str(caught.value))[1])  # type: ignore[index]
        assert named == whole.count(b"\n", 0, index) + 1


@settings(max_examples=200, deadline=None)
@given(data=st.data(), records=st.lists(DATA, min_size=2, max_size=4))
def test_a_flip_before_and_a_torn_tail_together_are_still_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, records: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "both.jsonl"
    path.unlink(missing_ok=True)
    with Journal.open(path, HEADER) as journal:
        for values in records:
            journal.append("decision", values)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    damaged = bytearray(whole[: data.draw(st.integers(last + 5, len(whole)))])
    damaged[data.draw(st.integers(0, last - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(JournalError):
        parse(bytes(damaged), path)


def test_a_missing_line_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write(path).splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(JournalError, match=r"line 3: .*missing or out of order"):
        Journal.open(path, HEADER)


def test_a_damaged_journal_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    damaged = write(path).replace(b'"trial":0', b'"trial":9')
    path.write_bytes(damaged)
    with pytest.raises(JournalError):
        Journal.open(path, HEADER)
    assert path.read_bytes() == damaged


def test_a_journal_of_a_newer_format_says_which_distune_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    body = b'{"v":2,"seq":0,"kind":"header","data":{"distune_version":"7.1.0"}}'
    path.write_bytes(b'%s,"crc":"%08x"}\n' % (body[:-1], zlib.crc32(body)))
    with pytest.raises(JournalError, match=r"Install distune 7\.1\.0 or newer"):
        Journal.open(path, HEADER)


def test_the_oldest_journal_that_was_ever_written_can_still_be_read() -> None:
    frozen = Path(__file__).parent / "frozen" / "journal-v1.jsonl"
    records = read_records(frozen)
    assert [record.kind for record in records] == ["header", "note", "decision"]
    assert math.isnan(records[1].data["accuracy"])
    assert records[2].data == {"stage": "default", "trial": 1, "$meta": [0.1, None, True]}


def test_a_disk_that_is_full_in_the_middle_of_a_line_loses_nothing(tmp_path: Path) -> None:
    """A file size limit makes the kernel write a part and refuse the rest, as a full disk does."""
    program = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from distune.errors import WorkspaceError
        from distune.journal import Journal, read_records
        path = Path(sys.argv[1])
        journal = Journal.open(path, {})
        journal.append("result", {"n": 1})
        journal.commit()
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, resource.RLIM_INFINITY))
        journal.append("result", {"n": 2})
        try:
            journal.commit()
        except WorkspaceError as error:
            print(error)
        assert path.read_bytes() == before, "the half line is still there"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        journal.append("result", {"n": 3})
        journal.close()
        assert [r.data["n"] for r in read_records(path) if r.kind == "result"] == [1, 2, 3]
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "journal.jsonl")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cannot write the journal" in done.stdout
    assert "ulimit -f" in done.stdout


def test_kill_9_in_mid_run_leaves_every_committed_record(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    program = (
        "import os, sys; from pathlib import Path; from distune.journal import Journal\n"
        "j = Journal.open(Path(sys.argv[1]), {})\n"
        "for n in range(50): j.append('result', {'n': n}); j.commit() if n < 40 else None\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    with Journal.open(path, {}) as journal:
        assert [record.data["n"] for record in journal.records("result")] == list(range(40))
