"""Put files and folders on disk so that they are whole or not there, whenever the process or the machine stops."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError


def sync(path: Path) -> None:
    """Force what was written to a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 file and sync it."""
    path.write_text(content, encoding="utf-8", newline="\n")
    sync(path)


def put(beside: Path, place: Path) -> None:
    """Rename a synced file or folder to its place, instead of a file that may be there, and sync the name."""
    beside.replace(place)
    sync(place.parent)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file at `path`, which the system gives back when the process ends, however it does.

    Raises:
        CheckpointError: another process holds it, or nobody may write there.
    """
    import fcntl  # not everywhere: where it lacks, runs can still be read

    try:
        file = path.open("a")
    except OSError as error:
        raise CheckpointError(f"{path}: can't be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{what}: another process is training there: wait for it, or stop it") from None
        yield
