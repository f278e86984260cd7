"""Refuse what can't be checked: a class that does not declare what its kind's rows ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..core.attention import Declaration
from ..core.component import KINDS
from ..core.topology import StackRole
from ..errors import PluginError
from .cases import cases_of

HOOKS = {"add", "rotate", "score"}


def refuse_unprovable(cls: type[Any]) -> None:
    """Raise where a component class can't be proven, because it declares too little or what has no meaning.

    Raises:
        PluginError: a declaration is missing or can't be checked, or no options to prove it with are known.
    """
    if getattr(cls, "kind", None) not in KINDS:
        raise PluginError(f"{cls.__qualname__} is of no kind; kinds are {', '.join(KINDS)}")
    refuse = REFUSALS.get(cls.kind)
    found = refuse(cls) if refuse else None
    if found:
        raise PluginError(f"{cls.kind} '{cls.name}' can't be proven: {found}")
    cases_of(cls)


def _attention(cls: type[Any]) -> str | None:
    declares = getattr(cls, "declares", None)
    if not isinstance(declares, Declaration):
        return "it declares nothing: set `declares = Declaration(can=..., ignores=..., lacks=...)`"
    for name in ("time", "memory"):
        exponent = getattr(declares, name)
        if not isinstance(exponent, int | float) or not math.isfinite(exponent) or not 0 <= exponent <= 3:
            return f"its cost in {name}, {exponent!r}, is no exponent between 0 and 3"
    if not {"causal", "two_sided"} & declares.can:
        return "it can run in no direction: `can` needs causal, two_sided or both"
    empty = [ability for ability, reason in declares.lacks.items() if not isinstance(reason, str) or not reason.strip()]
    return f"it lacks {', '.join(empty)} without a reason" if empty else None


def _position(cls: type[Any]) -> str | None:
    hooks = getattr(cls, "hooks", None)
    if not hooks or not set(hooks) <= HOOKS:
        given = ", ".join(sorted(hooks or ())) or "none"
        return f"its hooks are {given}: one or several of {', '.join(sorted(HOOKS))}"
    return _truth(cls, "relative", "whether shifting all positions changes nothing")


def _head(cls: type[Any]) -> str | None:
    return _truth(cls, "per_token", "whether it answers at each token, or once a sequence")


def _feedforward(cls: type[Any]) -> str | None:
    return _truth(cls, "mixes_tokens", "whether neighbours take part")


def _embedding(cls: type[Any]) -> str | None:
    return _truth(cls, "maskable", "whether it reads a sequence of tokens")


def _truth(cls: type[Any], name: str, meaning: str) -> str | None:
    value = getattr(cls, name, None)
    return None if isinstance(value, bool) else f"`{name}` is {value!r}: it says {meaning}, True or False"


def _topology(cls: type[Any]) -> str | None:
    stacks = getattr(cls, "stacks", None)
    if not stacks or not all(isinstance(role, StackRole) for role in stacks.values()):
        return "it declares no `stacks`, by name with a StackRole each"
    return _truth(cls, "generates", "whether it gives next-token logits step by step")


def _objective(cls: type[Any]) -> str | None:
    fields = getattr(cls, "fields", None)
    if not fields or not all(isinstance(name, str) for name in fields):
        return "it declares no `fields` of a raw batch"
    if not isinstance(cls.lookahead, int) or cls.lookahead < 0:
        return f"its `lookahead` is {cls.lookahead!r}, no number of tokens"
    return _truth(cls, "per_token", "whether it asks at each token") or _truth(
        cls, "asks_next", "whether a target is a later token"
    )


def _data(cls: type[Any]) -> str | None:
    rows = getattr(cls, "rows", None)
    return None if rows in ("stream", "examples") else f"its rows are {rows!r}: stream or examples"


REFUSALS: dict[str, Callable[[type[Any]], str | None]] = {
    "attention": _attention,
    "position": _position,
    "head": _head,
    "feedforward": _feedforward,
    "embedding": _embedding,
    "topology": _topology,
    "objective": _objective,
    "data": _data,
}
