"""The forms that values in a spec can take, read from type annotations: each can merge, bind and describe itself."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.component import KINDS, Part
from ..errors import PluginError
from .interpolate import is_reference
from .manager import Registry
from .marks import BROKEN, Mark, Node, Problem, nearest, node_of, shown
from .read import scalar


@dataclass
class Reading:
    """Carry what one reading of a spec needs and finds.

    `partial`: the map may be completed by others (it is a child, an override, a pattern), so nothing is missing yet and
    references are still open. `dropped`: notes of the options that went with a swap, by their place.
    """

    registry: Registry
    problems: list[Problem] = field(default_factory=list)
    dropped: dict[Mark, str] = field(default_factory=dict)
    partial: bool = False

    def note(self, mark: Mark, message: str) -> Any:
        """Note a problem and return what stands in the place of the value."""
        self.problems.append(Problem(mark, message))
        return BROKEN

    def drop(self, node: Node, why: str) -> None:
        """Note that a value which was written has no effect."""
        self.dropped.setdefault(node.mark, f"{node.mark.path}: {shown(node.plain())} ({node.mark}) {why}")


class Form(ABC):
    """Say what a value in a spec may be. `wanted` completes the sentence "should be ..."."""

    wanted: str

    def bind(self, node: Node, reading: Reading) -> Any:
        """Return the typed value, or `BROKEN` once every problem in it is noted."""
        if node.value is BROKEN or (reading.partial and is_reference(node)):
            return BROKEN
        return self._bind(node, reading)

    @abstractmethod
    def _bind(self, node: Node, reading: Reading) -> Any: ...

    def merge(self, base: Node, over: Node, reading: Reading) -> Node:
        """Return `over` laid over `base`: here, instead of it."""
        return over

    def dump(self, value: Any, registry: Registry) -> Any:
        """Return a typed value as plain data that binds to the same again."""
        return value

    @abstractmethod
    def schema(self, schemas: Schemas) -> dict[str, Any]:
        """Return the JSON Schema of what may be written."""

    def refuse(self, node: Node, reading: Reading) -> Any:
        """Note that a node is not of this form."""
        return reading.note(node.mark, f"should be {self.wanted}, not {described(node)}")


class Schemas(typing.Protocol):
    """Give the JSON Schemas that depend on what is installed."""

    def part(self, kind: str) -> dict[str, Any]:
        """Return the schema of a kind's parts, by reference."""
        ...

    def stack_names(self) -> list[str]:
        """Return the names that topologies give to stacks where they have several."""
        ...


def described(node: Node) -> str:
    """Say what a node holds, with what to write where only its type is wrong."""
    value = node.value
    if isinstance(value, dict | tuple):
        return "a map" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    names = {bool: "the truth value", int: "the whole number", float: "the number"}
    return f"{names[type(value)]} {shown(value)}" if value is not None else "null (nothing is written)"


class Scalar(Form):
    """A number, a truth value or a text; whole numbers are taken for numbers, never the reverse."""

    def __init__(self, kind: type) -> None:
        self.type = kind
        self.wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]

    def _bind(self, node: Node, reading: Reading) -> Any:
        value = node.value
        if self.type is float and type(value) is int:
            return float(value)
        if type(value) is not self.type:
            return reading.note(node.mark, f"should be {self.wanted}, not {described(node)}{self.advice(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            return reading.note(node.mark, f"should be a finite number, not {value}")
        return value

    def advice(self, value: object) -> str:
        """Say what to write where a value is only of the wrong type."""
        if self.type is str and isinstance(value, bool | int | float):
            return f": write '{shown(value)}' in quotes"
        if self.type is int and isinstance(value, float) and value.is_integer():
            return f": write {value:.0f}"
        return ": leave out the quotes" if isinstance(value, str) and type(scalar(value)) is self.type else ""

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        name = {bool: "boolean", int: "integer", float: "number", str: "string"}[self.type]
        return {"type": name}


class Choice(Form):
    """One of a few fixed values."""

    def __init__(self, choices: tuple[Any, ...]) -> None:
        self.choices = choices
        self.wanted = " or ".join(filter(None, [", ".join(map(str, choices[:-1])), str(choices[-1])]))

    def _bind(self, node: Node, reading: Reading) -> Any:
        for choice in self.choices:
            if type(choice) is type(node.value) and choice == node.value:
                return choice
        near = nearest(node.value, map(str, self.choices)) if isinstance(node.value, str) else ""
        hint = near if "did you mean" in near else ""
        return reading.note(node.mark, f"should be {self.wanted}, not {described(node)}{hint}")

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"enum": list(self.choices)}


class Null(Form):
    """Nothing, written `null`."""

    wanted = "null"

    def _bind(self, node: Node, reading: Reading) -> Any:
        return None if node.value is None else self.refuse(node, reading)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "null"}


class OneOf(Form):
    """A value of any of several forms, tried in order."""

    def __init__(self, forms: tuple[Form, ...]) -> None:
        self.forms = forms
        self.wanted = " or ".join(form.wanted for form in forms)

    def _bind(self, node: Node, reading: Reading) -> Any:
        trials = [dataclasses.replace(reading, problems=[]) for _ in self.forms]
        for form, trial in zip(self.forms, trials, strict=True):
            value = form.bind(node, trial)
            if not trial.problems:
                return value
        # Where one form got as far as the inside of the value, its problems say more than "none of these".
        deep = next((trial.problems for trial in trials if all(p.mark != node.mark for p in trial.problems)), None)
        if deep is None:
            return self.refuse(node, reading)
        reading.problems.extend(deep)
        return BROKEN

    def merge(self, base: Node, over: Node, reading: Reading) -> Node:
        deep = [form for form in self.forms if isinstance(form, Record | MapOf | ListOf)]
        return deep[0].merge(base, over, reading) if deep else over

    def dump(self, value: Any, registry: Registry) -> Any:
        if value is None:
            return None
        return next(form for form in self.forms if not isinstance(form, Null)).dump(value, registry)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"anyOf": [form.schema(schemas) for form in self.forms]}


class ListOf(Form):
    """A list of items of one form, or of as many as `size` says; an index map laid over it changes single items."""

    def __init__(self, item: Form, size: int | None = None) -> None:
        self.item = item
        self.size = size
        self.wanted = (
            "a list of maps" if isinstance(item, Record) else "a list" if size is None else f"a list of {size}"
        )

    def _bind(self, node: Node, reading: Reading) -> Any:
        if reading.partial and has_indices(node):
            for item in node.items.values():
                self.item.bind(item, reading)
            return BROKEN
        if not isinstance(node.value, tuple) or self.size not in (None, len(node.value)):
            return self.refuse(node, reading)
        bound = {id(item): item for item in node.value}  # a layer that repeats is bound once
        done = {key: self.item.bind(item, reading) for key, item in bound.items()}
        values = tuple(done[id(item)] for item in node.value)
        return BROKEN if any(value is BROKEN for value in values) else values

    def merge(self, base: Node, over: Node, reading: Reading) -> Node:
        if not isinstance(base.value, tuple) or not has_indices(over):
            return over
        items = list(base.value)
        for key, node in over.items.items():
            if int(key) >= len(items):
                reading.note(node.mark, f"there is no item {key}: the list has {len(items)}, counted from 0")
            else:
                items[int(key)] = self.item.merge(items[int(key)], node, reading)
        return node_of(tuple(items), over.mark)

    def dump(self, value: Any, registry: Registry) -> Any:
        return [self.item.dump(item, registry) for item in value]

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        bounds = {} if self.size is None else {"minItems": self.size, "maxItems": self.size}
        return {"type": "array", "items": self.item.schema(schemas), **bounds}


def has_indices(node: Node) -> bool:
    """Say whether a node is a map of items by their index, which changes a list that it is laid over."""
    return bool(node.items) and all(key.isdecimal() for key in node.items)


class MapOf(Form):
    """A map from names to values of one form."""

    wanted = "a map"

    def __init__(self, item: Form) -> None:
        self.item = item

    def _bind(self, node: Node, reading: Reading) -> Any:
        if not isinstance(node.value, dict):
            return self.refuse(node, reading)
        values = {key: self.item.bind(child, reading) for key, child in node.value.items()}
        return BROKEN if any(value is BROKEN for value in values.values()) else values

    def merge(self, base: Node, over: Node, reading: Reading) -> Node:
        return merge_maps(base, over, reading, lambda _: self.item)

    def dump(self, value: Any, registry: Registry) -> Any:
        return {key: self.item.dump(child, registry) for key, child in value.items()}

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.item.schema(schemas)}


class Record(Form):
    """A map with the fields of a dataclass."""

    wanted = "a map"

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
        """Construct the dataclass; a `ValueError` may begin with `field: ` to say which option it is about."""
        try:
            return self.cls(**values)
        except ValueError as error:
            name, colon, message = str(error).partition(": ")
            if colon and name in self.forms:
                at = node.items[name].mark if name in node.items else node.mark.below(name)
                return reading.note(at, message)
            return reading.note(node.mark, str(error))
        except Exception as error:
            why = f"{self.cls.__qualname__} can't check its options: {type(error).__name__}: {error}"
            raise PluginError(f"{node.mark}: {node.mark.path}: {why}") from error

    def merge(self, base: Node, over: Node, reading: Reading) -> Node:
        return merge_maps(base, over, reading, self.forms.get)

    def dump(self, value: Any, registry: Registry) -> Any:
        return {name: form.dump(getattr(value, name), registry) for name, form in self.forms.items()}

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        reference = {"$ref": "#/$defs/reference"}
        properties = {
            name: {**self.about(name), "anyOf": [form.schema(schemas), reference]} for name, form in self.forms.items()
        }
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def about(self, name: str) -> dict[str, Any]:
        """Return a field's description, from the docstrings' `name: text`, and its default where it is plain."""
        default = self.fields[name].default
        plain = {"default": default} if isinstance(default, bool | int | float | str) else {}
        for cls in self.cls.__mro__:
            text = " ".join((vars(cls).get("__doc__") or "").split())
            label = r"`?\w+`?(?:, `?\w+`?)*: "
            found = re.search(rf"(?<!\w)`?{name}`?(?:, `?\w+`?)*: (.+?)(?=[.;] {label}|\.?$)", text)
            if found and not text.startswith(f"{cls.__name__}("):
                return {"description": found[1], **plain}
        return plain


def merge_maps(base: Node, over: Node, reading: Reading, form_for: Callable[[str], Form | None]) -> Node:
    """Lay one map over another key by key; anything but two maps is replaced."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        if is_reference(base) and isinstance(over.value, dict):
            reading.note(over.mark, f"can't change a part of the reference {shown(base.value)}: write it out")
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        form = form_for(key)
        merged[key] = form.merge(merged[key], child, reading) if form and key in merged else child
    return node_of(merged, over.mark, {**base.keys, **over.keys})


@functools.cache
def record_of(cls: type[Any]) -> Record:
    """Return the form of a dataclass."""
    return Record(cls)


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
