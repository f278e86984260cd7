"""Which files an ONNX graph reads besides its own, found in its bytes before anything loads it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

MESSAGES: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
"""By ONNX's message, the numbers of the fields that lead to a tensor's place outside the file, and what they hold."""
ENTRY = "StringStringEntryProto"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how protobuf says how long a value is


def locations(path: Path) -> set[str]:
    """Return the files that the tensors of a graph say they lie in, as they are written there.

    Raises:
        ValueError: the file is no ONNX graph.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        found: set[str] = set()
        # A list of what is still to be read, because graphs may lie in graphs deeper than calls may.
        waiting = [("ModelProto", 0, len(held))]
        while waiting:
            message, start, end = waiting.pop()
            if message == ENTRY:
                found |= _place(held, start, end)
                continue
            inner = MESSAGES[message]
            waiting += [
                (inner[field], first, last) for field, first, last in _fields(held, start, end) if field in inner
            ]
        return found


def _place(held: mmap.mmap, start: int, end: int) -> set[str]:
    """Return the file that an entry of a tensor's external data names; all of them where a field comes twice."""
    said = [(number, held[first:last]) for number, first, last in _fields(held, start, end)]
    if (1, b"location") not in said:
        return set()
    return {value.decode() for number, value in said if number == 2} or {""}


def _fields(held: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the numbers of a message's fields that have a length, and where they begin and end."""
    while start < end:
        tag, start = _varint(held, start, end)
        number, kind = tag >> 3, tag & 7
        if kind == BYTES:
            size, start = _varint(held, start, end)
            if size > end - start:
                raise ValueError("it ends too early")
            yield number, start, start + size
            start += size
        elif kind == VARINT:
            _, start = _varint(held, start, end)
        elif kind in (FIXED32, FIXED64):
            start += 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"there is no value of kind {kind}")
    if start != end:
        raise ValueError("it ends too early")


def _varint(held: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """Return a number, and where it ends."""
    value = 0
    for place in range(start, min(start + 10, end)):
        byte = held[place]
        value |= (byte & 127) << 7 * (place - start)
        if byte < 128:
            return value, place + 1
    raise ValueError("it holds a number without an end")
