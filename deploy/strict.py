"""What `transom.json` may say: values of the declared types, and names of plain files of its own folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63  # ONNX counts in 64 bits


def misfit(value: object, kind: Any, where: str = "") -> str:
    """Return what of `value` is not of the annotation `kind`, with its place; "" if all of it is.

    Whole numbers lie within 64 bits, others are finite, and True is no number.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return ""
    if origin is Literal:
        return "" if value in inner else f"{where}: {repr(value)[:40]} is none of {', '.join(inner)}"
    if origin in (Union, UnionType):
        found = [misfit(value, one, where) for one in inner]
        return "" if "" in found else found[0]
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, kind):
        hints = get_type_hints(kind)
        parts = [(getattr(value, one.name), hints[one.name], f"{where}.{one.name}".lstrip(".")) for one in fields(kind)]
    elif origin is tuple and isinstance(value, tuple):
        parts = [(one, inner[0], f"{where}[{place}]") for place, one in enumerate(value)]
    elif origin is Mapping and isinstance(value, dict):
        parts = [(one, inner[1], f"{where}.{ascii(name)[1:-1][:60]}") for name, one in value.items()]
    else:
        return (
            ""
            if _plain(value, kind)
            else f"{where}: {repr(value)[:40]} is not of type {getattr(kind, '__name__', kind)}"
        )
    return next(filter(None, (misfit(*part) for part in parts)), "")


def _plain(value: object, kind: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return math.isfinite(value) if isinstance(value, float) else _plain(value, int)
    if kind is int:
        return isinstance(value, int) and -LARGEST <= value < LARGEST
    return isinstance(kind, type) and isinstance(value, kind)


def outside(folder: Path, name: str) -> str:
    """Return why the file `name` may lie outside `folder`, or "". Opens nothing."""
    if not name.isprintable() or not name or name in (".", "..") or set(name) & set("/\\:"):
        return f"{ascii(name)[:60]} is no name of a file in the folder"
    return f"{name} is a link" if (folder / name).is_symlink() else ""
