"""The JSON Schema of `transom.json`, read from the annotations and docstrings that its reader goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..registry.records import description
from .manifest import FORMAT, SCHEMA, Manifest
from .strict import LARGEST

PLAIN: Mapping[Any, Mapping[str, Any]] = {
    Any: {},
    NoneType: {"type": "null"},
    bool: {"type": "boolean"},
    str: {"type": "string"},
    int: {"type": "integer", "minimum": -LARGEST, "maximum": LARGEST - 1},
    float: {"type": "number"},
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of what `transom.json` may say."""
    definitions: dict[str, Any] = {}
    _of(Manifest, definitions)
    said = definitions.pop(Manifest.__name__)
    head = {SCHEMA: {"type": "string"}, "format": {"const": FORMAT}}
    return {
        SCHEMA: "https://json-schema.org/draft/2020-12/schema",
        "title": "transom.json of an exported folder",
        **said,
        "properties": {**head, **said["properties"]},
        "required": ["format", *said["required"]],
        "$defs": dict(sorted(definitions.items())),
    }


def _of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an annotation; those of dataclasses go to `definitions`, by their names."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return {"anyOf": [_of(one, definitions) for one in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        return {"type": "array", "items": _of(inner[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _of(inner[1], definitions)}
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return dict(PLAIN[kind])
    if kind.__name__ not in definitions:
        hints, about = get_type_hints(kind), " ".join((kind.__doc__ or "").split())
        definitions[kind.__name__] = {
            "type": "object",
            "properties": {one.name: _field(one.name, hints[one.name], about, definitions) for one in fields(kind)},
            "required": [one.name for one in fields(kind) if one.default is one.default_factory is MISSING],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _field(name: str, kind: Any, about: str, definitions: dict[str, Any]) -> dict[str, Any]:
    said = description(name, about)
    return {**({"description": said} if said else {}), **_of(kind, definitions)}
