"""Durable files: written whole or not at all, with errors that say what to do about the disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from distune.errors import WorkspaceError

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space, then run the same command again to resume",
    errno.EDQUOT: "the disk quota is used up: free some space, then run the same command again to resume",
    errno.EFBIG: "the file would exceed the allowed size: raise `ulimit -f`, then run the same command again to resume",
    errno.EROFS: "the file system is read-only: name another folder with --workspace",
    errno.EACCES: "no permission: mend the folder's permissions or name another folder with --workspace",
    errno.EPERM: "no permission: mend the folder's permissions or name another folder with --workspace",
    errno.ENOTDIR: "a part of this path is a file, not a folder: name another folder with --workspace",
    errno.EEXIST: "a file of this name is in the way: remove it or name another folder with --workspace",
    errno.EIO: "the disk reports an input/output error: name a folder on another disk with --workspace",
}


def workspace_error(action: str, path: Path, error: OSError) -> WorkspaceError:
    """An ``OSError`` in words: what was tried, where, why it failed and what to do."""
    advice = _ADVICE.get(error.errno or 0, "name another folder with --workspace")
    return WorkspaceError(f"cannot {action} {path}: {error.strerror or error}; {advice}")


def fsync_directory(path: Path) -> None:
    """Make new, renamed and removed names in a folder survive a power cut.

    Raises:
        OSError: The folder cannot be opened or synced.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder; their renames are durable
            raise
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """``os.write`` until everything is written.

    Raises:
        OSError: The disk refused the rest; a part may have been written.
    """
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def write_file(path: Path, content: bytes | str) -> None:
    """``replace_file`` in a workspace.

    Raises:
        WorkspaceError: It cannot be written; the old file is still there.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise workspace_error("write", path, error) from error


def replace_file(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content`` atomically: readers see the old or the new file, also after a power cut.

    Raises:
        OSError: It cannot be written; the old file is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_synced(temporary, content)
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def replace_folder(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """Replace ``folder`` by one that holds exactly ``files`` (content by relative name).

    The new folder is complete on disk before the old one goes, so files of two models are never mixed.

    Raises:
        ValueError: A name is absolute or leaves the folder.
        WorkspaceError: It cannot be written; the old folder is still there.
    """
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise ValueError(f"not a file name inside a folder: {name!r}")
    new = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    try:
        if old.exists() and not folder.exists():
            os.replace(old, folder)  # an earlier replacement died between its two renames
        for leftover in (new, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        new.mkdir()
        for name, content in files.items():
            target = new / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_synced(target, content)
            fsync_directory(target.parent)
        fsync_directory(new)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        fsync_directory(folder.parent)
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        if old.exists() and not folder.exists():
            with suppress(OSError):
                os.replace(old, folder)
        raise workspace_error("write the folder", folder, error) from error


def _write_synced(path: Path, content: bytes | str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, content.encode() if isinstance(content, str) else content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
