"""The contract of topologies: how stacks and heads are wired into a model, and which graphs it exports as."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import InputError
from .component import Component
from .embedding import Input
from .head import Head
from .stack import Stack
from .state import Declared, State


@dataclass(frozen=True)
class StackRole:
    """Say what a stack is for in a topology.

    `causal`: its tokens may not see later ones. `memory`: the name of the stack whose hidden states it reads, if any.
    """

    causal: bool
    memory: str | None = None


@dataclass(frozen=True, eq=False)
class Output:
    """Hold what a model gives.

    `logits`: (B, T, V) or (B, V), a map by head's name where a model has several, None where not asked for.
    `hidden` (B, T, C): the last stack's hidden states. `state`: what to hand to the next step.
    `attentions`: the weights (B, H, T, S) of each softmax attention, where asked for.
    """

    logits: Any
    hidden: Tensor
    state: State | None = None
    attentions: tuple[Tensor, ...] | None = None


Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Graph:
    """Declare one function of a model that is exported as one graph.

    `inputs` and `outputs` by name with their dimensions; `takes` and `gives`: the state before and after, by the
    declared names. `run(inputs, state) -> (outputs, next state)` computes it.
    """

    inputs: Mapping[str, Input]
    outputs: Mapping[str, tuple[str | int, ...]]
    takes: Declared
    gives: Declared
    run: Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


class Topology(nn.Module, Component, ABC):
    """Wire stacks and heads into a model.

    `stacks`: name -> `StackRole`, in the order that they are built. Options of the only stack stand directly under
    `model` in a spec; those of several under their names. `generates`: gives next-token logits step by step.
    """

    kind: ClassVar[str] = "topology"
    stacks: ClassVar[Mapping[str, StackRole]]
    generates: ClassVar[bool] = False

    def __init__(self, config: Any, stacks: Mapping[str, Stack], heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.config = config
        for name, stack in stacks.items():
            self.add_module(name, stack)
        self.heads = nn.ModuleDict(heads)
        self.spec: Any = None  # what it was composed from; set by whoever composes

    @abstractmethod
    def forward(self, *, logits: bool = True, **inputs: Any) -> Output:
        """Run the model on keyword inputs with the field's names."""

    @abstractmethod
    def graphs(self) -> Mapping[str, Graph]:
        """Declare what is exported: name -> `Graph`."""

    def declared(self) -> Declared:
        """Declare the state; empty where nothing is decoded step by step."""
        return {}

    def empty_state(self, batch: int) -> State:
        """Return the state before the first token.

        Raises:
            InputError: this topology remembers nothing.
        """
        raise InputError(f"a model of topology {self.name!r} has no state: it sees its whole input at once")

    @property
    def head(self) -> Head:
        """Return the first head, which objectives train."""
        return next(iter(self.heads.values()))  # type: ignore[return-value]

    def read_heads(self, hidden: Tensor, mask: Tensor | None) -> Any:
        """Return the logits of every head: a tensor for one, a map by name for several."""
        logits = {name: head(hidden, mask) for name, head in self.heads.items()}
        return next(iter(logits.values())) if len(logits) == 1 else logits

    def take(self, stack: Stack, given: Mapping[str, Tensor | None], prefix: str = "") -> Tensors:
        """Pick the inputs that a stack's embedding declares out of keyword inputs, whose names begin with `prefix`.

        Raises:
            InputError: one is missing, or one is given that no part of the model takes.
        """
        wanted = [prefix + name for name in stack.embedding.inputs()]
        missing = [name for name in wanted if given.get(name) is None]
        if missing:
            got = ", ".join(sorted(n for n, t in given.items() if t is not None)) or "nothing"
            raise InputError(f"this model takes {', '.join(wanted)}; it was given {got}")
        return {name.removeprefix(prefix): given[name] for name in wanted}  # type: ignore[misc]
