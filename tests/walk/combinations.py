"""Every combination of attention, position, norm and topology that the registry knows, as a tiny spec."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transom.conformance.companions import versatile
from transom.core.objective import Objective
from transom.core.topology import StackRole, Topology
from transom.registry.manager import default
from transom.registry.spec import Spec, parse_spec

KINDS = ("attention", "position", "norm")
NONE = "none"
OWN, CROSS = "attention", "cross_attention"
VOCAB_SIZE = 64
# What an option of this name is set to, in whatever component has it: small, and no two lengths alike.
OPTIONS: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_heads": 2,
    "window": 6,  # even: `longformer` has a half on each side
    "block": 4,
    "n_window": 2,
    "d_ff": 20,
    "n_classes": 7,
    "rate": 0.4,
}


@dataclass(frozen=True)
class Combination:
    """Name the parts that meet; `place` says which of a block's two attentions is the one that is walked."""

    topology: str
    place: str
    attention: str
    position: str
    norm: str

    def __str__(self) -> str:
        topology = self.topology if self.place == OWN else f"{self.topology} ({self.place})"
        return f"{topology}: {self.attention} + {self.position} + {self.norm}"


@functools.cache
def combinations() -> tuple[Combination, ...]:
    """Return all combinations of what is registered."""
    positions, norms = ([*default().names(kind), NONE] for kind in ("position", "norm"))
    # A stack that serves training alone is made as the others are, and gives nothing that could be walked.
    whole = [
        name
        for name in default().names("topology")
        if not (cls := default().get("topology", name)).readers(cls.Config())
    ]
    places = [(name, place) for name in whole for place in _places(name)]
    rows = itertools.product(places, default().names("attention"), positions, norms)
    return tuple(Combination(*where, *parts) for where, *parts in rows)


def spec_of(*rows: Combination) -> Spec:
    """Return the spec of a model with a layer for each row: rows of one topology, whose first has what a stack shares.

    Where an attention is walked across a memory, the block's own one, and where it is the block's own, the one across,
    is whichever takes everything.
    """
    topology = default().get("topology", rows[0].topology)
    objective = objective_of(topology)
    stacks = {
        name: {"layers": [{"pattern": [_layer(row, rows[0], role) for row in _in_stack(role, rows)]}]}
        for name, role in topology.stacks.items()
    }
    model = {
        "topology": rows[0].topology,
        "d_model": 24,
        "max_seq_len": 24,
        "embedding": _part("embedding", "token"),
        "position": _part("position", rows[0].position),
        "layer": {"feedforward": _part("feedforward", "mlp")},
        "norm": _part("norm", rows[0].norm),
        "head": _part("head", _first("head", lambda cls: cls.per_token == objective.per_token)),
        **(stacks if len(stacks) > 1 else next(iter(stacks.values()))),
    }
    return parse_spec({"name": "walk", "model": model, "objective": _part("objective", objective.name)})


def objective_of(topology: type[Topology]) -> type[Objective]:
    """Return the objective that asks most of a topology: the next token where it can, else each token."""
    last = list(topology.stacks.values())[-1]
    classes: list[type[Objective]] = [default().get("objective", name) for name in default().names("objective")]
    fitting = [
        cls
        for cls in classes
        if cls.sequences == len(topology.stacks) and cls.asks_next <= last.causal and not cls.trains
    ]
    return max(fitting, key=lambda cls: (cls.asks_next, cls.per_token, not cls.derives))


# -- a part of the combinations that covers all pairs -----------------------------------------------------------------

Pair = tuple[tuple[str, str], tuple[str, str]]


def pairs(row: Combination) -> frozenset[Pair]:
    """Return every two parts that meet in a combination."""
    topology = "topology", f"{row.topology}/{row.place}"
    return frozenset(itertools.combinations([topology, *((kind, getattr(row, kind)) for kind in KINDS)], 2))


def covering(rows: Sequence[Combination], refused: Callable[[Combination], bool]) -> list[Combination]:
    """Choose few rows in which any two parts meet, greedily (Cohen et al. 1997): the first of those that add most.

    Two parts meet in a row that composes if any row with both does: what is refused proves nothing of its other parts.
    """
    sound = {row: pairs(row) for row in rows if not refused(row)}
    possible = frozenset[Pair]().union(*sound.values())
    left = {row: set(sound.get(row) or pairs(row) - possible) for row in rows}
    chosen = list[Combination]()
    while True:
        best = max(rows, key=lambda row: len(left[row]))
        if not left[best]:
            return chosen
        chosen.append(best)
        met = frozenset(left[best])
        for pending in left.values():
            pending -= met


def representatives(rows: Sequence[Combination]) -> list[Combination]:
    """Choose few of some rows in which each attention, position and norm of theirs still occurs."""
    kinds = ("place", *KINDS)
    missing = {(kind, getattr(row, kind)) for row in rows for kind in kinds}
    chosen = list[Combination]()
    while missing:
        best = max(rows, key=lambda row: len(missing & {(kind, getattr(row, kind)) for kind in kinds}))
        chosen.append(best)
        missing -= {(kind, getattr(best, kind)) for kind in kinds}
    return chosen


# -- parts ------------------------------------------------------------------------------------------------------------


def _places(topology: str) -> list[str]:
    stacks: Mapping[str, StackRole] = default().get("topology", topology).stacks
    return [OWN, CROSS] if any(role.memory for role in stacks.values()) else [OWN]


def _in_stack(role: StackRole, rows: Sequence[Combination]) -> Sequence[Combination]:
    """Return the rows that a stack has a layer for: of what reads a memory, one stands in the stack that gives it."""
    return rows if role.memory is not None or rows[0].place == OWN else rows[:1]


def _layer(row: Combination, first: Combination, role: StackRole) -> dict[str, Any]:
    able = versatile().cls.name
    named = {OWN: able, CROSS: able, row.place: row.attention}
    layer = {"norm": _part("norm", row.norm), OWN: _part("attention", named[OWN])}
    if role.memory is not None:
        layer[CROSS] = _part("attention", named[CROSS])
    if row.position != first.position:
        layer["position"] = _part("position", row.position)
    return layer


def _part(kind: str, name: str) -> Any:
    if name == NONE:
        return NONE
    options = dataclasses.fields(default().get(kind, name).Config)
    return {"kind": name, **{option.name: OPTIONS[option.name] for option in options if option.name in OPTIONS}}


def _first(kind: str, fits: Callable[[Any], bool]) -> str:
    return next(name for name in default().names(kind) if fits(default().get(kind, name)))
