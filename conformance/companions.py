"""Find what a component is proven beside: built-in parts, chosen by what they declare and by no name."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from ..core.attention import Mechanism
from ..core.initialise import unallocated
from ..registry.manager import BUILT_IN, ComponentClass, Installed, Registry, UnknownName, default
from .cases import Case, cases_of, site_of

GIVEN = "given"


@functools.cache
def companions(kind: str) -> tuple[type[Any], ...]:
    """Return the built-in components of a kind: no other package is imported for company."""
    return tuple(default().get(kind, name) for name in default().names(kind))


def bases(kind: str) -> tuple[Case, ...]:
    """Return each built-in component of a kind once, with the fewest options."""
    return tuple(cases_of(cls)[0] for cls in companions(kind))


def hooked(hook: str) -> list[Case]:
    """Return the built-in positions with this hook."""
    return [case for case in bases("position") if hook in case.cls.hooks]


@functools.cache
def forgets_marks(attention: Case, position: Case) -> bool:
    """Say whether an attention keeps its newest tokens alone, without what a position reads of each besides."""
    with unallocated():
        reads = position.part.build(site_of(attention)).reads()
        declared = attention.part.build(site_of(attention)).declared()
    return bool(reads) and any(rule.grows == "ring" for rule in declared.values())


def serving(case: Case) -> list[Case]:
    """Return one position that turns, for an attention that takes one: what most rows run with."""
    declares = case.cls.declares
    return hooked("rotate")[:1] if "rotate" in declares.can | declares.ignores else []


def composes(attention: Case, position: Case) -> bool:
    """Say whether an attention takes a position's every hook, or does not mind it, and its heads fit the options."""
    if position.cls.hooks & set(attention.cls.declares.lacks) or not _fits(attention, position):
        return False
    return has_heads_for(attention, position) or "score" not in attention.cls.declares.can


@functools.cache
def _fits(attention: Case, position: Case) -> bool:
    try:
        with unallocated():
            position.part.build(site_of(attention))
    except ValueError:  # a share of a head that is odd, say
        return False
    return True


def has_heads_for(attention: Case, position: Case) -> bool:
    """Say whether an attention has the queries and keys of heads, where a position asks for them."""
    return is_mechanism(attention) or not (position.cls.projects or position.cls.by_content)


def decoding() -> list[Case]:
    """Return the built-in attentions that can stand in a decoder."""
    return [case for case in bases("attention") if "causal" in case.cls.declares.can]


@functools.cache
def versatile() -> Case:
    """Return the plainest attention that can stand anywhere."""
    return plainest(case for case in bases("attention") if not case.cls.declares.lacks)


def plainest(cases: Iterable[Case]) -> Case:
    """Return the first of those with the fewest weights: what stands beside what is proven is in every figure of it."""
    return min(cases, key=_weights)


@functools.cache
def _weights(case: Case) -> int:
    with unallocated():
        built = case.part.build(site_of(case))
    return sum(parameter.numel() for parameter in built.parameters())


def is_mechanism(case: Case) -> bool:
    """Say whether an attention is the inner part of multi-head attention."""
    return issubclass(case.cls, Mechanism)


def text_embedding() -> Case:
    """Return an embedding of tokens."""
    return next(case for case in bases("embedding") if case.cls.maskable)


def token_head() -> Case:
    """Return a head that answers at each token."""
    return next(case for case in bases("head") if case.cls.per_token)


class Lent(Registry):
    """Answer as the default registry does, and know one class besides, which no installed package brings."""

    def __init__(self, cls: ComponentClass) -> None:
        super().__init__(())
        self._cls = cls
        self._name = f"{GIVEN}/{cls.name}"

    def get(self, kind: str, name: str) -> ComponentClass:
        """Return the class that was lent, by its name, or an installed one."""
        if (kind, name) == (self._cls.kind, self._name):
            return self._cls
        if name.startswith(f"{GIVEN}/"):
            raise UnknownName(f"no {kind} named '{name}'")
        return default().get(kind, name)

    def names(self, kind: str, everything: bool = False) -> list[str]:
        """Return the names of a kind, the lent one included."""
        return [*default().names(kind, everything), *([self._name] if kind == self._cls.kind else [])]

    def full_name(self, cls: ComponentClass) -> str:
        """Return what a spec calls a class."""
        return self._name if cls is self._cls else default().full_name(cls)

    def package(self, cls: ComponentClass) -> Installed | None:
        """Return the package that brought a class; None for the lent one."""
        return None if cls is self._cls else default().package(cls)


def registry_of(cls: ComponentClass) -> Registry:
    """Return the registry in which a class has a name: the default one, or it with the class lent to it."""
    try:
        default().full_name(cls)
    except KeyError:
        return Lent(cls)
    return default()


def name_of(cls: ComponentClass) -> tuple[str, str]:
    """Return the package and the name of a component; a class of no installed package is of package `given`."""
    package, _, bare = registry_of(cls).full_name(cls).rpartition("/")
    return package or BUILT_IN, bare
