"""Folders that are written beside their place and renamed, so that they are whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import CheckpointError

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
KEPT_CONFIG = "hf_config.json"
"""The name under which a run keeps the config of the folder that it came from."""


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a new folder beside `out` to write in; it becomes `out` when the block ends well, else it is removed.

    Folders that were made for it go with it.

    Raises:
        CheckpointError: something is at `out` already, or nothing can be written there.
    """
    out = out.absolute()
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise CheckpointError(f"{out}: is there already: choose another folder, or remove it")
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        with _beside(out) as beside:
            yield beside
            for path in (*beside.rglob("*"), beside):
                _sync(path)
            beside.rename(out)
            _sync(out.parent)
    finally:
        for folder in made:
            with suppress(OSError):  # it holds what was written, or was not made
                folder.rmdir()


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Give a new folder beside `out`, and remove it where it still is there in the end."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        beside.chmod(0o755)
    except OSError as error:
        raise CheckpointError(f"{out}: can't be written: {error.strerror}") from None
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Force what was written to a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
