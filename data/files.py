"""Write small files so that they are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..errors import DataError


def write_whole(path: Path, content: str) -> None:
    """Write a UTF-8 file beside its place, sync it and rename it; raise DataError where that fails.

    Processes that write equal content at the same time do not disturb each other.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise DataError(f"{path}: can't be written: {error.strerror or error}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink()
        if isinstance(error, OSError):
            raise DataError(f"{path}: can't be written: {error.strerror or error}") from None
        raise
