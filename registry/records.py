"""Dataclasses as forms: which options there are, and what each may be, is read from their annotations."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..core.component import KINDS, Part
from ..errors import PluginError
from .forms import Choice, Form, ListOf, MapOf, Null, OneOf, Raw, Reading, Scalar, Schemas, merge_maps
from .manager import Registry
from .marks import BROKEN, Mark, Node, nearest


class Record(Form):
    """A map with the fields of a dataclass."""

    wanted = "a map"
    deep = True

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
        hints = _hints(cls)
        self.forms = {name: form_of(hints[name], f"{cls.__qualname__}.{name}") for name in self.fields}

    def _bind(self, node: Node, reading: Reading) -> Any:
        if not isinstance(node.value, dict):
            return self.refuse(node, reading)
        return self.bind_fields(node, node.value, reading)

    def bind_fields(self, node: Node, entries: Mapping[str, Node], reading: Reading) -> Any:
        """Bind some entries of a map to the dataclass."""
        values: dict[str, Any] = {}
        for key, child in entries.items():
            if key in self.forms:
                values[key] = self.forms[key].bind(child, reading)
            else:
                values[key] = reading.note(node.place(key), f"unknown option '{key[:100]}'{nearest(key, self.forms)}")
        if reading.partial:
            return BROKEN
        for name, item in self.fields.items():
            if name not in values and item.default is item.default_factory is dataclasses.MISSING:
                values[name] = reading.note(
                    node.mark.below(name), f"is missing: it should be {self.forms[name].wanted}"
                )
        return BROKEN if any(value is BROKEN for value in values.values()) else self.make(node, values, reading)

    def make(self, node: Node, values: dict[str, Any], reading: Reading) -> Any:
        """Construct the dataclass; a `ValueError` may begin with `field: ` or `field.inside: ` to say which option."""
        try:
            return self.cls(**values)
        except ValueError as error:
            path, colon, message = str(error).partition(": ")
            first, *inside = path.split(".")
            if colon and first in self.forms:
                return reading.note(_mark(node, [first, *inside]), message)
            return reading.note(node.mark, str(error))
        except Exception as error:
            why = f"{self.cls.__qualname__} can't check its options: {type(error).__name__}: {error}"
            raise PluginError(f"{node.mark}: {node.mark.path}: {why}") from error

    def merge(self, base: Node, over: Node, reading: Reading) -> Node:
        return merge_maps(base, over, reading, self.forms.get)

    def holds(self, value: Any) -> bool:
        return isinstance(value, self.cls)

    def dump(self, value: Any, registry: Registry) -> Any:
        return {name: form.dump(getattr(value, name), registry) for name, form in self.forms.items()}

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        reference = {"$ref": "#/$defs/reference"}
        properties = {
            name: {**self.about(name), "anyOf": [form.schema(schemas), reference]} for name, form in self.forms.items()
        }
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def about(self, name: str) -> dict[str, Any]:
        """Return a field's description, out of the docstrings, and its default where it is plain."""
        default = self.fields[name].default
        plain = {"default": default} if isinstance(default, bool | int | float | str) else {}
        docs = [" ".join((vars(cls).get("__doc__") or "").split()) for cls in self.cls.__mro__]
        found = next(filter(None, (description(name, text) for text in docs)), None)
        return plain if found is None else {"description": found, **plain}


def _mark(node: Node, path: Iterable[str]) -> Mark:
    """Return where the option at a path of keys stands, or would."""
    mark = node.mark
    for key in path:
        child = node.items.get(key)
        mark = mark.below(key) if child is None else child.mark
        node = node if child is None else child
    return mark


def description(name: str, text: str) -> str | None:
    """Return what a docstring says of an option: what stands after `name: `, or else the sentence that names it."""
    label = r"`?\w+`?(?:, `?\w+`?)*: "
    end = rf"(?=[.;] {label}|\. [A-Z`]|\.?$)"
    found = re.search(rf"(?<!\w)`?{name}`?(?:, `?\w+`?)*: (.+?){end}", text)
    found = found or re.search(rf"(?:^|(?<=\. ))([^.]*`{name}`.*?){end}", text)
    return found[1] if found and not re.match(r"\w+\(", text) else None


@functools.cache
def record_of(cls: type[Any]) -> Record:
    """Return the form of a dataclass."""
    return Record(cls)


def parts_in(value: Any, seen: set[int]) -> Iterator[Part]:
    """Yield the parts in a typed value and in their options; `seen`: ids of what was looked at."""
    if id(value) in seen:
        return
    seen.add(id(value))
    inside: Iterable[Any] = ()
    if isinstance(value, Part):
        yield value
        inside = (value.config,)
    elif dataclasses.is_dataclass(value):
        inside = (getattr(value, item.name) for item in dataclasses.fields(value))
    elif isinstance(value, tuple | Mapping):
        inside = value.values() if isinstance(value, Mapping) else value
    for item in inside:
        yield from parts_in(item, seen)


def form_of(annotation: Any, where: str) -> Form:
    """Return the form that a type annotation asks for.

    Raises:
        PluginError: options can't be of this type; `where` names the option.
    """
    from .parts import PartForm, PartsForm  # parts are made of options: each needs the other

    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        kinds = [item for item in args[1:] if isinstance(item, str) and item in KINDS]
        inner = [args[0], *typing.get_args(args[0])]
        if kinds and any(typing.get_origin(item) is tuple for item in inner):
            return PartsForm(kinds[0], optional=type(None) in inner)
        return PartForm(kinds[0], optional=type(None) in inner) if kinds and Part in inner else form_of(args[0], where)
    if annotation in (bool, int, float, str):
        return Scalar(annotation)
    if annotation is type(None):
        return Null()
    if annotation is Node:
        return Raw()
    if origin is typing.Literal:
        return Choice(args)
    if origin in (typing.Union, types.UnionType):
        return OneOf(tuple(form_of(item, where) for item in args))
    if origin is tuple and args[1:] == (...,):
        return ListOf(form_of(args[0], where))
    if origin is tuple and len(set(args)) == 1:
        return ListOf(form_of(args[0], where), len(args))
    if origin in (dict, Mapping) and args[0] is str:
        return MapOf(form_of(args[1], where))
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return record_of(annotation)
    raise PluginError(f"{where}: an option can't be of type {annotation}; a part is Annotated[Part, kind]")


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise PluginError(f"the annotations of {cls.__qualname__} can't be read: {error}") from error
