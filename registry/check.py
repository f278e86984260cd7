"""Refuses a combination of parts that has no mathematical sense, before anything is built, and says why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..core.attention import ABILITIES, Attention, Mechanism
from ..core.component import Part
from ..core.objective import Objective
from ..core.topology import StackRole
from .marks import BrokenSpec, Problem
from .spec import Spec
from .typed import LayerSpec, StackSpec


def check(spec: Spec) -> None:
    """Check that all parts of a spec compose.

    Raises:
        SpecError: with every combination that does not, each at its place, naming both parts and the reason.
    """
    problems = [*_stacks(spec), *_objective(spec)]
    if problems:
        raise BrokenSpec(problems)


def _stacks(spec: Spec) -> Iterator[Problem]:
    lenders = spec.model.topology.cls.lenders(spec.model.topology.config)
    for name, role in spec.model.topology.cls.stacks.items():
        stack = spec.model.stacks[name]
        path = f"model.stacks.{name}"
        if stack.embedding is None:
            yield spec.problem(f"{path}.embedding", f"the stack '{name}' needs an embedding: there is nothing to read")
        elif name in lenders and stack.embedding != spec.model.stacks[lenders[name]].embedding:
            yield spec.problem(
                f"{path}.embedding",
                f"the stack '{name}' reads with the embedding of '{lenders[name]}', and can't have one of its own",
            )
        for index, layer in enumerate(stack.layers):
            yield from _layer(spec, f"{path}.layers.{index}", role, stack, layer)


def _layer(spec: Spec, path: str, role: StackRole, stack: StackSpec, layer: LayerSpec) -> Iterator[Problem]:
    topology = f"a stack of topology '{spec.model.topology.name}'"
    order = "causal" if role.causal else "two_sided"
    for name, part in (("attention", layer.attention), ("beside", layer.beside)):
        if part is not None:
            yield from _needs(spec, f"{path}.{name}", part, order, topology, f"is {order.replace('_', '-')}")
    if layer.attention is not None:
        where = f"{path}.attention"
        positions = stack.position if layer.position is None else layer.position
        for position in positions:
            for hook in ("rotate", "score"):
                if hook in position.cls.hooks:
                    does = {"rotate": "turns queries and keys", "score": "adds to scores"}[hook]
                    yield from _needs(spec, where, layer.attention, hook, f"position '{position.name}'", does)
            yield from _projects(spec, where, layer.attention, position)
    if layer.cross_attention is not None:
        yield from _needs(
            spec, f"{path}.cross_attention", layer.cross_attention, "cross", "cross_attention", "reads a memory"
        )


def _needs(spec: Spec, path: str, attention: Part, ability: str, other: str, does: str) -> Iterator[Problem]:
    cls: type[Attention] = attention.cls
    if ability in cls.declares.lacks:
        yield spec.problem(
            path,
            f"attention '{attention.name}' does not compose with {other}: {other} {does}, and {attention.name} can't "
            f"{ABILITIES[ability]}, because {cls.declares.lacks[ability]}",
        )


def _permuted(spec: Spec, objective: type[Objective], both: str) -> Iterator[Problem]:
    """Check that all parts can keep to an order of the row's own, and that there is something to ask with."""
    topology = spec.model.topology
    if not topology.cls.permutes:
        yield spec.problem("objective", f"{both}: it gives rows an order of their own, and the topology has but one")
        return
    name, stack = next(iter(spec.model.stacks.items()))
    if stack.embedding is not None and not getattr(stack.embedding.config, "blank", False):
        yield spec.problem(
            f"model.stacks.{name}.embedding",
            f"objective '{objective.name}' asks for tokens that are not shown: the embedding needs a vector for their "
            "places (blank: true)",
        )
    does = "gives rows an order of their own"
    for index, layer in enumerate(stack.layers):
        if layer.attention is not None:
            where = f"model.stacks.{name}.layers.{index}.attention"
            yield from _needs(spec, where, layer.attention, "pairs", f"objective '{objective.name}'", does)


def _projects(spec: Spec, path: str, attention: Part, position: Part) -> Iterator[Problem]:
    """Check that an attention has the projections, or the queries and keys, that a position asks for."""
    cls: type[Attention] = attention.cls
    if issubclass(cls, Mechanism) or "score" not in cls.declares.can:
        return
    head = f"attention '{attention.name}' does not compose with position '{position.name}', because {position.name}"
    if position.cls.by_content:
        yield spec.problem(
            path, f"{head} scores the queries and keys of heads, and {attention.name}, a mixer, has none of these"
        )
    if position.cls.projects:
        of = "scores by an attention's projections to queries and keys"
        yield spec.problem(path, f"{head} {of}, and {attention.name}, a mixer, has none of these")


def asked_heads(spec: Spec) -> Mapping[str, type[Objective]]:
    """Return the heads that a spec's objective asks, and what kind of objective asks each; without one, the first."""
    first = next(iter(spec.model.heads), "")
    if spec.objective is None:
        return {first: Objective}
    return spec.objective.cls.heads(spec.objective.config) or {first: spec.objective.cls}


def _objective(spec: Spec) -> Iterator[Problem]:
    """Check that the objective, the topology, the heads and the data ask for and give the same."""
    objective, topology = spec.objective, spec.model.topology
    if objective is None:
        return
    both = f"objective '{objective.name}' does not compose with topology '{topology.name}'"
    for stack in sorted(objective.cls.trains - topology.cls.stacks.keys()):
        yield spec.problem("objective", f"{both}: it trains the stack '{stack}', which the topology has not")
    for name, asks in asked_heads(spec).items():
        yield from _asks(spec, asks)
        head = spec.model.heads.get(name)
        if head is None:
            has = ", ".join(f"'{each}'" for each in spec.model.heads) or "none"
            which = f"the head '{name}'" if name else "a head"
            message = f"objective '{objective.name}' asks {which}, and the model has {has}"
            yield spec.problem("objective", message)
        elif head.cls.per_token != asks.per_token:
            once, reads = ("each token", "a sequence") if asks.per_token else ("a sequence", "each token")
            yield spec.problem(
                f"model.heads.{name}",
                f"head '{head.name}' does not compose with objective '{asks.name}': the objective asks once for "
                f"{once}, the head answers once for {reads}",
            )


def _asks(spec: Spec, asks: type[Objective]) -> Iterator[Problem]:
    """Check one of the objectives against the topology."""
    topology = spec.model.topology
    roles = topology.cls.stacks
    both = f"objective '{asks.name}' does not compose with topology '{topology.name}'"
    reads = len({role.prefix for role in roles.values()})
    if asks.sequences != reads:
        yield spec.problem(
            "objective", f"{both}: the objective gives {asks.sequences} sequence(s), the topology reads {reads}"
        )
    elif asks.asks_next and not list(roles.values())[-1].causal:
        yield spec.problem(
            "objective", f"{both}: it asks for the next token, which a two-sided stack has already been shown"
        )
    elif asks.permutes:
        yield from _permuted(spec, asks, both)
