"""Files that a job names, and how they get to nodes that lack them: there need not be a shared file system.

A node that lacks a file keeps its bytes in anonymous memory (one copy a node, gone with the last process that uses it),
reachable under ``/proc/<pid>/fd/<n>``. One rank receives them, and every other one of the node opens them too: they
outlive any of these. A private folder of links, one a rank, gives them their own names back, since importers,
``np.load`` and external weights of ONNX models look at names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from distune.backends.onnxruntime.external import external_locations
from distune.config.imports import split_reference
from distune.config.job import TuningJob
from distune.errors import TransportError

CHUNK_BYTES = 16 << 20
"""Bytes that travel in one message."""

_FOLDER_PREFIX = "distune-files-"
_NOT_INPUT = ("workspace", "source")


@dataclass(frozen=True)
class FileEntry:
    """One file of a job.

    Attributes:
        path: Absolute, as the job names it.
        size: Bytes.
        sha256: Of its content, in hexadecimal digits.
    """

    path: str
    size: int
    sha256: str


def files_of(job: TuningJob) -> list[Path]:
    """The regular files that ``job`` names: model and its external weights, data, ``.py`` files of the user's code.

    Only absolute paths count, as in every job that comes from a YAML file. What a live object of the user reads is
    not known here.
    """
    found: dict[str, None] = {}
    for text in _strings(job):
        for path in (text, split_reference(text)[0]):
            if os.path.isabs(path) and os.path.isfile(path):
                found.setdefault(path)
                found.update(dict.fromkeys(_external_weights(path)))
                break
    return [Path(path) for path in found]


def folders_of(job: TuningJob) -> list[Path]:
    """The folders that ``job`` names (e.g. of images). They do not travel: each node needs them."""
    return [Path(text) for text in dict.fromkeys(_strings(job)) if os.path.isabs(text) and os.path.isdir(text)]


def rewrite_paths(job: TuningJob, mapping: Mapping[str, str]) -> TuningJob:
    """``job`` with every path in ``mapping`` replaced, also in ``path:name``."""

    def rewritten(text: str) -> str:
        if text in mapping:
            return mapping[text]
        location, attribute = split_reference(text)
        return f"{mapping[location]}:{attribute}" if attribute and location in mapping else text

    changed: TuningJob = _mapped(job, rewritten)
    return changed


def file_entry(path: Path) -> FileEntry:
    """Size and checksum of a file."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
            size += len(data)
    return FileEntry(str(path), size, digest.hexdigest())


def is_lacking(entry: FileEntry) -> bool:
    """Whether this node has no such file, or another one under that path."""
    path = Path(entry.path)
    try:
        return not path.is_file() or path.stat().st_size != entry.size or file_entry(path) != entry
    except OSError:
        return True


def read_chunks(path: str) -> Iterator[bytes]:
    """The content of a file in pieces of ``CHUNK_BYTES``."""
    with open(path, "rb") as file:
        while data := file.read(CHUNK_BYTES):
            yield data


class FileStore:
    """Files that this node has received. The process that owns it must live as long as it or its children use them."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._folder: Path | None = None

    def append(self, path: str, data: bytes) -> None:
        """Add ``data`` to the file that the job calls ``path``."""
        if path not in self._descriptors:
            self._descriptors[path] = _anonymous_file(os.path.basename(path))
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptors[path], view) :]

    def adopt(self, published: Mapping[str, str]) -> dict[str, str]:
        """Keep files that another process of this node has published, beyond its end.

        Returns:
            What ``publish`` gives, for this process.

        Raises:
            TransportError: That process has ended already.
        """
        for path, link in published.items():
            try:
                self._descriptors[path] = os.open(link, os.O_RDONLY)
            except OSError as error:
                raise TransportError(
                    f"{path} is not to be had from {link}: the rank that received it has gone"
                ) from error
        return self.publish()

    def publish(self) -> dict[str, str]:
        """Where each file can be read on this node, by the path that the job names.

        Files that were in one folder, or in folders below it, are so again: they find each other.
        """
        _remove_abandoned_folders()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))
        folders = {parent: f"{index}" for index, parent in enumerate(_tops(self._descriptors))}
        published: dict[str, str] = {}
        for path, descriptor in self._descriptors.items():
            top = next(parent for parent in folders if Path(path).is_relative_to(parent))
            link = self._folder / folders[top] / os.path.relpath(path, top)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
            published[path] = str(link)
        return published

    def close(self) -> None:
        """Forget the files. May be called twice."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            _remove_abandoned_folders()  # of a neighbour that was killed


def _tops(paths: Iterable[str]) -> list[str]:
    """The folders of ``paths`` that are in no other of them."""
    parents = dict.fromkeys(os.path.dirname(path) for path in paths)
    return [p for p in parents if not any(other != p and Path(p).is_relative_to(other) for other in parents)]


def _anonymous_file(name: str) -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"distune-{name}"[:200])
    descriptor, path = tempfile.mkstemp(prefix="distune-")
    os.unlink(path)
    return descriptor


def _remove_abandoned_folders() -> None:
    """Links of ranks that were killed: they lead nowhere."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        owner = folder.name[len(_FOLDER_PREFIX) :].partition("-")[0]
        with suppress(FileNotFoundError):  # a neighbour does the same
            if owner.isdigit() and not psutil.pid_exists(int(owner)) and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def _external_weights(path: str) -> Sequence[str]:
    """Files beside an ONNX model that hold its weights, as it names them."""
    if not path.endswith(".onnx"):
        return ()
    names = (os.path.join(os.path.dirname(path), name) for name in external_locations(Path(path)))
    return [name for name in names if os.path.isfile(name)]


def _strings(value: object, top: bool = True) -> Iterator[str]:
    """Every text in dataclasses, mappings and sequences."""
    if isinstance(value, str):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            if not (top and field.name in _NOT_INPUT):
                yield from _strings(getattr(value, field.name), top=False)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part, top=False)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part, top=False)


def _mapped(value: Any, change: Callable[[str], str], top: bool = True) -> Any:
    """``value`` with every text in dataclasses, mappings and sequences changed."""
    changed: Any = value
    if isinstance(value, str):
        changed = change(value)
    elif is_dataclass(value) and not isinstance(value, type):
        new = {
            field.name: _mapped(getattr(value, field.name), change, top=False)
            for field in fields(value)
            if field.init and not (top and field.name in _NOT_INPUT)
        }
        changed = replace(value, **new)
    elif isinstance(value, dict):
        changed = {key: _mapped(part, change, top=False) for key, part in value.items()}
    elif isinstance(value, list):
        changed = [_mapped(part, change, top=False) for part in value]
    elif type(value) is tuple:
        changed = tuple(_mapped(part, change, top=False) for part in value)
    return changed
