"""The forms that values in a spec can take: each can bind, merge, dump and describe itself."""

from __future__ import annotations

import dataclasses
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .interpolate import is_reference
from .manager import Registry
from .marks import BROKEN, Mark, Node, Problem, nearest, node_of, shown
from .read import scalar


@dataclass
class Reading:
    """Carry what one reading of a spec needs and finds.

    `partial`: the map may be completed by others (it is a child, an override, a pattern), so nothing is missing yet and
    references are still open. `dropped`: notes of options that went with a swap or have a new name, by place.
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
        """Note that a value which was written has no effect, or not under the name that it was given."""
        self.dropped.setdefault(node.mark, f"{node.mark.path}: {shown(node.plain())} ({node.mark}) {why}")


class Form(ABC):
    """Say what a value in a spec may be. `wanted` completes "should be ..."; `deep`: merging reaches inside."""

    wanted: str
    deep: ClassVar[bool] = False

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

    def holds(self, value: Any) -> bool:
        """Say whether a typed value, not None, may be of this form where there are several."""
        return True

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
    """Say what a node holds."""
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

    def holds(self, value: Any) -> bool:
        return value in self.choices

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"enum": list(self.choices)}


class Null(Form):
    """Nothing, written `null`."""

    wanted = "null"

    def _bind(self, node: Node, reading: Reading) -> Any:
        return None if node.value is None else self.refuse(node, reading)

    def holds(self, value: Any) -> bool:
        return False

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "null"}


class Raw(Form):
    """Anything, left as it was read: its reader comes later."""

    wanted = "anything"

    def _bind(self, node: Node, reading: Reading) -> Any:
        return node

    def dump(self, value: Any, registry: Registry) -> Any:
        return value.plain()

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {}


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
        deep = [form for form in self.forms if form.deep]
        return deep[0].merge(base, over, reading) if deep else over

    def dump(self, value: Any, registry: Registry) -> Any:
        if value is None:
            return None
        return next(form for form in self.forms if form.holds(value)).dump(value, registry)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"anyOf": [form.schema(schemas) for form in self.forms]}


class ListOf(Form):
    """A list of items of one form, or of as many as `size` says; an index map laid over it changes single items."""

    deep = True

    def __init__(self, item: Form, size: int | None = None) -> None:
        self.item = item
        self.size = size
        self.wanted = "a list of maps" if item.wanted == "a map" else "a list" if size is None else f"a list of {size}"

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
    return bool(node.items) and all(key.isdecimal() and len(key) < 6 for key in node.items)


class MapOf(Form):
    """A map from names to values of one form."""

    wanted = "a map"
    deep = True

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
