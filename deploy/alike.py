"""Say whether two modules compute alike: from what they are made of, all but their weights and their place."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..core.component import Site

ATOMS = (
    int, float, complex, str, bytes, type(None), frozenset, set, type, Enum, FunctionType, torch.dtype, torch.device,
)  # fmt: skip
# What `vars` of a module holds besides its attributes.
HELD = ("_parameters", "_buffers", "_modules")


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Say whether two modules give the same for the same input and weights, as far as their attributes tell.

    Parameters and buffers need the same names, shapes and dtypes; a part that is shared within one must be within the
    other. Other tensors must have equal values, and all else must be equal, but for the layer that a module's site
    names: who folds modules that are alike must see to it that it is not read when they run (see `Placeless`).
    """
    return _Pairs().same(one, other)


class Placeless(Site):
    """A site that notes when its `layer` is read."""

    asked: bool

    @classmethod
    def of(cls, site: Site) -> Placeless:
        """Return a site with the same facts."""
        made = object.__new__(cls)
        vars(made).update(vars(site), asked=False)
        return made

    def __getattribute__(self, name: str) -> Any:
        if name == "layer":
            object.__setattr__(self, "asked", True)
        return super().__getattribute__(name)


class _Pairs:
    """Compare object by object; each module and each weight of one side with a single one of the other."""

    def __init__(self) -> None:
        self.partners: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
        self.met: set[tuple[int, int]] = set()

    def same(self, one: Any, other: Any) -> bool:
        if type(one) is not type(other):
            return False
        if isinstance(one, ATOMS):
            return bool(one == other)
        if isinstance(one, nn.Module) and not self._partners(one, other):
            return False
        if (id(one), id(other)) in self.met:
            return True
        self.met.add((id(one), id(other)))
        return self._modules(one, other) if isinstance(one, nn.Module) else self._values(one, other)

    def _partners(self, one: object, other: object) -> bool:
        """Say whether two can stand for each other: neither stands for another one."""
        there, back = self.partners
        return there.setdefault(id(one), other) is other and back.setdefault(id(other), one) is one

    def _modules(self, one: nn.Module, other: nn.Module) -> bool:
        ours, theirs = _attributes(one), _attributes(other)
        return (
            all(self._tensors(getattr(one, kind), getattr(other, kind)) for kind in HELD[:2])
            and self.same(one._modules, other._modules)
            and list(ours) == list(theirs)
            and all(self._facts(ours[name], theirs[name]) for name in ours)
        )

    def _facts(self, one: Any, other: Any) -> bool:
        if isinstance(one, Site) and isinstance(other, Site):
            return one.but(layer=1) == other.but(layer=1)
        return self.same(one, other)

    def _tensors(self, ours: Mapping[str, Tensor | None], theirs: Mapping[str, Tensor | None]) -> bool:
        return list(ours) == list(theirs) and all(map(self._tensor, ours.values(), theirs.values()))

    def _tensor(self, one: Tensor | None, other: Tensor | None) -> bool:
        if one is None or other is None:
            return one is other
        kinds = [(tensor.shape, tensor.dtype, tensor.device) for tensor in (one, other)]
        return kinds[0] == kinds[1] and self._partners(one, other)

    def _values(self, one: Any, other: Any) -> bool:
        if isinstance(one, Tensor):
            return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        if isinstance(one, MethodType):
            return one.__func__ is other.__func__ and self.same(one.__self__, other.__self__)
        if isinstance(one, partial):
            return all(self.same(getattr(one, part), getattr(other, part)) for part in ("func", "args", "keywords"))
        if isinstance(one, Mapping):
            return list(one) == list(other) and all(self.same(one[key], other[key]) for key in one)
        if isinstance(one, (list, tuple)):
            return len(one) == len(other) and all(map(self.same, one, other))
        if hasattr(one, "__dict__"):
            return self.same(vars(one), vars(other))
        return bool(one == other)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in HELD}
