"""The append-only record of a run: the truth for resume, report and what-if.

``append`` buffers, ``commit`` writes the buffer in one go, flushes and fsyncs. The one rule of its user: *commit before
acting on what was appended*. Then a crash at any instant loses nothing that anything was decided from. The journal is
written by the master only; ``Workspace`` holds the lock that makes it so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from distune import __version__
from distune.errors import JournalError
from distune.journal.files import fsync_directory, workspace_error, write_all
from distune.journal.record import (
    LINE_START,
    VERSION,
    DamagedLine,
    Kind,
    Record,
    contains_record,
    decode_line,
    encode_line,
)


class Journal:
    """A journal that is open for appending. Made by ``Journal.open``; closes as a context manager."""

    def __init__(
        self, path: Path, descriptor: int, size: int, records: list[Record], warnings: tuple[str, ...]
    ) -> None:
        self.path = path
        self.warnings = warnings
        """What was mended when the journal was opened; empty for a clean one. Show it to the user."""
        self.resumed = bool(records)
        """The journal was there already, with its header."""
        self._descriptor = descriptor
        self._size = size
        self._read = records
        self._unread: list[bytes] = []  # lines of records that nobody has asked for yet
        self._buffer: list[bytes] = []

    @classmethod
    def open(cls, path: Path, header: Mapping[str, Any]) -> Journal:
        """Open the journal at ``path``, or begin one with ``header``.

        A journal that exists keeps its own header (compare it by ``signature.differences``). A torn last line, cut at
        any byte or garbage, is cut off and reported in ``warnings``.

        Args:
            path: The file; its folder exists.
            header: Plain values that describe the run. The record also says which distune wrote it.

        Raises:
            JournalError: The journal is damaged before its last line, or was written by a newer distune.
            WorkspaceError: The file cannot be opened or written.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise workspace_error("open", path, error) from error
        try:
            content = _read_all(descriptor)
            records, intact = parse(content, path)
            warnings = _mend(descriptor, path, content, intact)
            journal = cls(path, descriptor, intact, records, warnings)
            if content and records and not content[:intact].endswith(b"\n"):
                journal._buffer.append(b"\n")
            if not records:
                journal.append("header", {"distune_version": __version__, **header})
            journal.commit()
            if not journal.resumed:
                fsync_directory(path.parent)
        except OSError as error:
            os.close(descriptor)
            raise workspace_error("open", path, error) from error
        except BaseException:
            os.close(descriptor)
            raise
        return journal

    @property
    def header(self) -> Mapping[str, Any]:
        """What the run was started with: the ``header`` that was given when the journal was begun."""
        return {key: value for key, value in self._records[0].data.items() if key != "distune_version"}

    @property
    def written_by(self) -> str:
        """Version of the distune that began the journal."""
        return str(self._records[0].data.get("distune_version", ""))

    def append(self, kind: Kind, data: Mapping[str, Any]) -> None:
        """Add a record. It is on disk after the next ``commit``, and in ``records`` at once.

        Raises:
            TypeError: ``data`` holds something that is not plain.
        """
        line = encode_line(len(self._read) + len(self._unread), kind, data)
        self._buffer.append(line)
        self._unread.append(line)

    def commit(self) -> None:
        """Write and fsync what was appended since the last commit; does nothing where that is nothing.

        Raises:
            WorkspaceError: The disk refuses (it is full, ...). What was committed before is untouched, what was not is
                kept and tried again by the next ``commit``.
        """
        if not self._buffer:
            return
        content = b"".join(self._buffer)
        try:
            write_all(self._descriptor, content)
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):  # should this fail too, the half line is cut off as a torn tail at the next open
                os.ftruncate(self._descriptor, self._size)
                os.fsync(self._descriptor)
            raise workspace_error("write the journal", self.path, error) from error
        self._size += len(content)
        self._buffer.clear()

    def records(self, kind: Kind | None = None) -> list[Record]:
        """All records in order, or those of one kind."""
        return [record for record in self._records if kind is None or record.kind == kind]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    @property
    def _records(self) -> list[Record]:
        self._read += [decode_line(line[:-1]) for line in self._unread]
        self._unread.clear()
        return self._read

    def close(self) -> None:
        """Commit and close. May be called twice.

        Raises:
            WorkspaceError: The last records could not be written.
        """
        if self._descriptor < 0:
            return
        try:
            self.commit()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_records(path: Path) -> list[Record]:
    """The records of a journal without touching it, so that a run that is going on can be looked at.

    A torn last line is left out.

    Raises:
        JournalError: There is no journal, it is damaged before its last line, or was written by a newer distune.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror or error}") from error
    return parse(content, path)[0]


def parse(content: bytes, path: Path) -> tuple[list[Record], int]:
    """The records in the bytes of a journal, and the number of bytes that they take.

    What lies behind those bytes is a torn tail.

    Args:
        path: For messages.

    Raises:
        JournalError: Something other than the last line is damaged, or the journal was written by a newer distune.
    """
    records: list[Record] = []
    start = 0
    while start < len(content):
        newline = content.find(b"\n", start)
        end = newline if newline >= 0 else len(content)
        try:
            record = decode_line(content[start:end])
        except DamagedLine as error:
            tail = content[start:]
            if any(line.startswith(LINE_START) for line in tail.split(b"\n")[1:]) or contains_record(tail):
                raise JournalError(_damage(path, len(records) + 1, str(error))) from error
            return records, start
        if record.version > VERSION:
            raise JournalError(_newer(path, record, records))
        if record.seq != len(records):
            reason = f"record {len(records)} is missing or out of order: this one is {record.seq}"
            raise JournalError(_damage(path, len(records) + 1, reason))
        if (record.seq == 0) != (record.kind == "header"):
            raise JournalError(_damage(path, len(records) + 1, f"a {record.kind} record stands where it cannot"))
        records.append(record)
        start = end + 1
    return records, min(start, len(content))


def _damage(path: Path, line: int, reason: str) -> str:
    return (
        f"{path}, line {line}: the journal is damaged before its last line ({reason}), so what was decided from it is "
        f"not known any more. Restore the file from a copy, delete line {line} and everything after it to resume from "
        f"there, or start over with --fresh (the old journal is kept aside)"
    )


def _newer(path: Path, record: Record, before: list[Record]) -> str:
    header = before[0].data if before else record.data
    writer = header.get("distune_version")
    needed = f"distune {writer} or newer" if writer else "a newer distune"
    return (
        f"{path}, line {len(before) + 1}: written in journal format {record.version}, this is distune {__version__}, "
        f"which reads up to format {VERSION}. Install {needed}, or start over with --fresh (the old journal is kept "
        f"aside)"
    )


def _read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _mend(descriptor: int, path: Path, content: bytes, intact: int) -> tuple[str, ...]:
    if intact == len(content):
        return ()
    os.ftruncate(descriptor, intact)
    os.fsync(descriptor)
    line = content.count(b"\n", 0, intact) + 1
    return (
        f"{path}, line {line}: the last record was torn ({len(content) - intact} bytes, as after a crash) and is cut "
        f"off; what it recorded is done again",
    )
