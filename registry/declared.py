"""Says in plain lines what a component declares: whatever the contract of its kind asks its class for."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from ..core.component import Component

# What all kinds share, and is said elsewhere: names, options, and their past.
COMMON = frozenset(Component.__annotations__)


def declared(cls: type[Any]) -> list[str]:
    """Return a line for each thing that a component class declares: `can causal, score`, `generates yes`."""
    contract = next(base for base in reversed(cls.__mro__) if "kind" in vars(base))
    names = [name for name in vars(contract).get("__annotations__", {}) if name.islower() and name not in COMMON]
    return [line for name in names for line in _lines(name, getattr(cls, name, None))]


def _lines(name: str, value: Any) -> list[str]:
    """Return the lines that say one thing; none where it says nothing."""
    if isinstance(value, type):
        return []
    if dataclasses.is_dataclass(value):
        fields = [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value)]
        return [line for key, inner in fields for line in _lines(key, inner)]
    if isinstance(value, Mapping):
        plain = [(key, inner) for key, inner in value.items() if isinstance(inner, str)]
        said = [f"{name} {key}: {inner}" for key, inner in plain]
        return said if len(plain) == len(value) else [f"{name} {', '.join(value)}"]
    if isinstance(value, bool):
        return [f"{name} {'yes' if value else 'no'}"]
    if isinstance(value, int | float):
        return [f"{name} {value:g}"]
    if isinstance(value, str):
        return [f"{name} {value}"]
    return [f"{name} {', '.join(sorted(map(str, value)))}"] if isinstance(value, Collection) and value else []
