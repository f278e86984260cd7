"""Lowerings: for a while, components compute by the methods that they offer for a kind of runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..core.component import Component
from ..core.lowering import TARGETS
from ..errors import ExportError


@contextmanager
def lowered(model: nn.Module, target: str) -> Iterator[dict[str, str]]:
    """Let every component of a model that offers a lowering for `target` compute by it; give what each computes by.

    The keys are the names of modules. The first target of `TARGETS[target]` counts that it offers and does not decline.

    Raises:
        ExportError: a component names a method that it has not.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, Component)}
    changed: list[Any] = []
    said: dict[str, str] = {}
    try:
        for name, module in found.items():
            declined = {each: module.declines(each) for each in TARGETS[target] if each in module.lowers}
            offered = next((each for each, why in declined.items() if not why), None)
            if offered is None:
                why = "; ".join(dict.fromkeys(declined.values())) or f"it offers no lowering for {target}"
                said[name] = f"{module.kind} {module.name}: its forward; {why}"
                continue
            method = getattr(module, module.lowers[offered], None)
            if method is None:
                where = f"{type(module).__module__}.{type(module).__qualname__}"
                raise ExportError(f"{where}.lowers: there is no method '{module.lowers[offered]}' (for {offered})")
            changed.append(module)
            changed[-1].forward = method
            said[name] = f"{module.kind} {module.name}: {module.lowers[offered]}, its lowering for {offered}"
        yield said
    finally:
        for one in changed:
            del one.forward
