"""Read text files, records and the running Python's own sources, with errors that say file and place."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ..errors import DataError

Columns = Mapping[str, type | tuple[type, ...]]

# Tests and code tables of the standard library, and what was installed beside it.
NOT_STDLIB = frozenset({"test", "tests", "encodings", "idlelib", "lib2to3", "site-packages", "__pycache__"})


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line of a UTF-8 file with its number, from 1; a line keeps its end.

    Raises DataError, with the offset of the byte, where the file is not UTF-8, or when it can't be read.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
                offset += len(line)
    except UnicodeDecodeError as error:
        wrong = f"byte {offset + error.start} (0x{error.object[error.start]:02x})"
        raise DataError(f"{path}:{number}: {wrong} is not UTF-8: save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """Return the whole of a UTF-8 file; raise DataError as `read_lines` does."""
    return "".join(line for _, line in read_lines(path))


def walk(root: Path, suffixes: Collection[str], without: Collection[str] = ()) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder that end in one of `suffixes`, as (path relative to it, with slashes; path).

    The order is that of the names. Hidden names, links to folders and folders named in `without` are passed over.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be read: {error.strerror or error}")

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if name not in without and not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix in suffixes and not name.startswith("."):
                yield path.relative_to(root).as_posix(), path


def stdlib_files() -> Iterator[tuple[str, Path]]:
    """Yield the sources of the running Python's standard library, about 9.7 MB, the manual of `pydoc` included."""
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "ast.py").is_file():
        raise DataError(f"{root}: this Python keeps no sources of its standard library here: give `path` instead")
    yield from walk(root, (".py",), NOT_STDLIB)


def read_records(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, str | int]]]:
    """Yield the records of a `.tsv` or `.jsonl` file, each with its place (`file:line`); blank lines are passed over.

    A line of a .tsv holds the columns in order, parted by tabs, without a header; a line of a .jsonl is an object that
    has them as keys (others are left out). `columns` maps each name to the types that a value may have.

    Raises DataError at the first line that lacks a column, or has it empty or of another type.
    """
    formats = {".tsv": _split, ".jsonl": _parse}
    if path.suffix not in formats:
        raise DataError(f"{path}: can't tell its format from its name: it must end in {' or '.join(formats)}")
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        record = formats[path.suffix](place, line.rstrip("\r\n"), columns)
        for name, types in columns.items():
            _check(place, name, record[name], types)
        yield place, {name: record[name] for name in columns}


def _split(place: str, line: str, columns: Columns) -> dict[str, str | int]:
    values = line.split("\t")
    if len(values) != len(columns):
        wanted = " and ".join(columns)
        raise DataError(f"{place}: {len(values)} columns, not {len(columns)}: a line is {wanted}, parted by one tab")
    return dict(zip(columns, values, strict=True))


def _parse(place: str, line: str, columns: Columns) -> dict[str, str | int]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}:{error.colno}: {error.msg}: each line must be one JSON object") from None
    except (RecursionError, ValueError):
        raise DataError(f"{place}: nested too deep, or a number too long: each line must be one JSON object") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: a JSON {type(record).__name__}, not an object with {' and '.join(columns)}")
    for name in columns:
        if name not in record:
            raise DataError(f"{place}: `{name}` is missing: the object has {', '.join(map(repr, record)) or 'no keys'}")
    return record


def _check(place: str, name: str, value: object, types: type | tuple[type, ...]) -> None:
    if isinstance(value, bool) or not isinstance(value, types):
        allowed = " or ".join(each.__name__ for each in (types if isinstance(types, tuple) else (types,)))
        raise DataError(f"{place}: `{name}` is {value!r:.40}, of type {type(value).__name__}: it must be {allowed}")
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{place}: `{name}` is empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{place}: `{name}` holds half a surrogate pair, which is no text") from None
