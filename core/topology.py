"""The contract of topologies: how stacks and heads are wired into a model, and which graphs it exports as."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeAlias, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from .component import Component
from .head import Head
from .inputs import Input
from .slots import MASK, resume, step_declared, step_inputs, widened
from .stack import Stack
from .state import Declared, State
from .watch import Watch


@dataclass(frozen=True)
class StackRole:
    """Say what a stack is for in a topology.

    `causal`: its tokens may not see later ones. `memory`: the name of the stack whose hidden states it reads, if any.
    `prefix`: what the names of its inputs begin with.
    """

    causal: bool
    memory: str | None = None
    prefix: str = ""


@dataclass(eq=False)  # and nothing is set later, as in a State
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

    `slots`: whether what grows has room for tokens to come, and keeps its length; else each step makes it longer.
    A mask whose second dimension is `total` covers all columns since the first step, of which the last are new.
    """

    inputs: Mapping[str, Input]
    outputs: Mapping[str, tuple[str | int, ...]]
    takes: Declared
    gives: Declared
    run: Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]
    slots: bool = False


# Under other names: the class below takes these for its own attributes.
_StackRole = StackRole
_Output = Output
_Graph = Graph
_Stack = Stack
_State = State
_Watch = Watch


class Topology(nn.Module, Component, ABC):
    """Wire stacks and heads into a model.

    `stacks`: name -> `StackRole`, in the order that they are built. Options of the only stack stand directly under
    `model` in a spec; those of several under their names. `generates`: gives next-token logits step by step.
    `permutes`: takes rows with an `order` of their own, and gives what stands at the columns that are `asked` for.
    """

    StackRole: TypeAlias = _StackRole
    Output: TypeAlias = _Output
    Graph: TypeAlias = _Graph
    Stack: TypeAlias = _Stack
    State: TypeAlias = _State
    Watch: TypeAlias = _Watch

    kind: ClassVar[str] = "topology"
    stacks: ClassVar[Mapping[str, StackRole]]
    generates: ClassVar[bool] = False
    permutes: ClassVar[bool] = False

    def __init__(self, config: Any, stacks: Mapping[str, Stack], heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.config = config
        for name, stack in stacks.items():
            self.add_module(name, stack)
        self.heads = nn.ModuleDict(heads)
        self._answering = [name for name in heads if name not in self.readers(config)]
        self._reads = {  # by stack: name of an input -> what the stack calls it
            name: {role.prefix + own: own for own in stacks[name].feeds()} for name, role in self.stacks.items()
        }
        self._optional = {  # by stack: what it calls those that a call may leave out
            name: {own for own, put in stacks[name].feeds().items() if put.optional} for name in self.stacks
        }
        self.spec: Any = None  # what it was composed from; set by whoever composes

    @classmethod
    def lenders(cls, config: Any) -> Mapping[str, str]:
        """Say which stacks read with another's embedding: stack's name -> lender's, which borrows from none."""
        return {}

    @classmethod
    def widths(cls, config: Any) -> Mapping[str, int]:
        """Say which stacks are of another width than the model: stack's name -> d_model."""
        return {}

    @classmethod
    def readers(cls, config: Any) -> Mapping[str, str]:
        """Say which heads read another stack than the last one, if they are there: head's name -> stack's name."""
        return {}

    @abstractmethod
    def forward(self, *, logits: bool = True, **inputs: Any) -> Output:
        """Run the model on keyword inputs with the field's names."""

    @abstractmethod
    def graphs(self, *, last: bool = False) -> Mapping[str, Graph]:
        """Declare what is exported: name -> `Graph`.

        `last`: a graph that takes steps gives the logits of each row's last real token alone (see `step_graph`).
        """

    def step_graph(self, name: str, *, last: bool = False) -> Graph:
        """Declare a step of any number of tokens of the causal stack `name`, whose state has slots.

        It calls `forward` with the stack's inputs and its state. With `last` the logits are those of each row's last
        real token, (B, 1, V), in place of all.
        """
        stack, prefix = cast(Stack, self.get_submodule(name)), self.stacks[name].prefix
        declared = step_declared(stack)
        moving = {n: rule for n, rule in declared.items() if rule.grows != "static"}

        def run(inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
            given, before = resume(stack, {n.removeprefix(prefix): tensor for n, tensor in inputs.items()}, state)
            out = self(**{prefix + n: tensor for n, tensor in given.items()}, state=before, logits=not last)
            logits = self.read_last(out.hidden, given.get(MASK)) if last else out.logits
            return self.logits_by_name(logits), {n: out.state.tensors[n] for n in moving}

        inputs = {prefix + n: put for n, put in step_inputs(stack).items()}
        return Graph(inputs, self.logits_dims(1 if last else "sequence"), declared, moving, run, slots=True)

    def declared(self) -> Declared:
        """Declare the state; empty where nothing is decoded step by step."""
        return {}

    def empty_state(self, batch: int, room: int | None = None) -> State:
        """Return the state before the first token, for `batch` rows; with `room` for so many columns (see `State`).

        Raises:
            InputError: this topology remembers nothing.
        """
        raise InputError(f"a model of topology {self.name!r} has no state: it sees its whole input at once")

    def widen(self, state: State, room: int) -> State:
        """Return a state that has room with room for more columns; what it holds is copied.

        Raises:
            InputError: the state has no room, or has more.
        """
        if state.room is None or state.room > room:
            had = "none" if state.room is None else f"room for {state.room} columns"
            raise InputError(f"can't give a state room for {room} columns: it has {had}")
        return widened(state, self.declared(), room)

    @property
    def head(self) -> Head:
        """Return the first head of the last stack, which objectives train unless they name others."""
        return cast(Head, self.heads[self._answering[0]])

    def read_heads(self, hidden: Tensor, mask: Tensor | None, state: State | None = None) -> Any:
        """Return the logits of every head of the last stack, for its hidden (B, T, C) and mask (B, T).

        A tensor for one, a map by the heads' names for several: (B, T, V), or (B, V) from a head of whole sequences.
        state: what holds the tokens that came before these, where they are of one sequence.

        Raises:
            InputError: tokens came before, and a head needs all of a sequence at once.
        """
        if state is not None and state.columns:
            self._refuse_heads(state.columns)
        logits = {name: self.heads[name](hidden, mask) for name in self._answering}
        return next(iter(logits.values())) if len(logits) == 1 else logits

    def _refuse_heads(self, before: int) -> None:
        for name in self._answering:
            head = cast(Head, self.heads[name])
            if head.reads_all:
                raise InputError(
                    f"head '{name}' ({head.name}) needs all tokens of a text at once, and {before} came before these: "
                    "give the text in one call, let the head pool the last token, or leave heads out (logits=False)"
                )

    def read_last(self, hidden: Tensor, mask: Tensor | None) -> Any:
        """Return what `read_heads` does, but of each row's last real token alone: (B, 1, V) from a head per token.

        Of a row without a real token it is that of any column.
        """
        if mask is None:
            last = hidden.select(1, -1).unsqueeze(1)
        else:
            column = (mask.bool() * torch.arange(mask.shape[1], device=mask.device)).amax(1)
            last = hidden.gather(1, column.reshape(-1, 1, 1).expand(-1, 1, hidden.shape[-1]))
        heads = ((name, cast(Head, self.heads[name])) for name in self._answering)
        logits = {name: head(last, None) if head.per_token else head(hidden, mask) for name, head in heads}
        return next(iter(logits.values())) if len(logits) == 1 else logits

    def logits_by_name(self, logits: Any) -> Tensors:
        """Return what `read_heads` gave by the names that graphs use: `logits` for the first head, `logits.NAME`."""
        values = [logits] if isinstance(logits, Tensor) else list(logits.values())
        return dict(zip(self._logits_names(), values, strict=True))

    def logits_dims(self, columns: str | int) -> dict[str, tuple[str | int, ...]]:
        """Return the dimensions of all heads' logits by the same names, `columns` being that of the tokens."""
        return {
            name: ("batch", columns, "vocab") if cast(Head, head).per_token else ("batch", "classes")
            for name, head in zip(self._logits_names(), map(self.heads.get_submodule, self._answering), strict=True)
        }

    @property
    def pools(self) -> tuple[str, ...]:
        """Return the names, in graphs, of what heads give that is one vector a sequence."""
        heads = zip(self._logits_names(), map(self.heads.get_submodule, self._answering), strict=True)
        return tuple(name for name, head in heads if cast(Head, head).pools)

    def _logits_names(self) -> list[str]:
        return [f"logits.{name}" if place else "logits" for place, name in enumerate(self._answering)]

    def take(self, given: Mapping[str, Tensor | None], *stacks: str) -> dict[str, Tensors]:
        """Deal keyword inputs out to some stacks: stack's name -> inputs by their declared names.

        Shapes are those that the parts declare that read them, (batch, sequence) for token ids.

        Raises:
            InputError: one that is not optional is missing, or one is given that no stack reads.
        """
        if len(stacks) == 1 and given.keys() == self._reads[stacks[0]].keys():
            own = {name: given[source] for source, name in self._reads[stacks[0]].items()}
            if not any(tensor is None for tensor in own.values()):
                return {stacks[0]: cast(Tensors, own)}
        taken: dict[str, Tensors] = {}
        left = len(given)
        for stack in stacks:
            taken[stack] = mine = {}
            for name, declared in self._reads[stack].items():
                tensor = given.get(name)
                if tensor is None:
                    if declared in self._optional[stack]:
                        left -= name in given
                        continue
                    self._refuse(given, stacks)
                left -= 1
                mine[declared] = tensor
        if left and any(tensor is not None for name, tensor in given.items() if name not in self._names(stacks)):
            self._refuse(given, stacks)
        return taken

    def _names(self, stacks: Iterable[str]) -> list[str]:
        return [name for stack in stacks for name in self._reads[stack]]

    def _refuse(self, given: Mapping[str, Tensor | None], stacks: Iterable[str]) -> NoReturn:
        got = ", ".join(sorted(name for name, tensor in given.items() if tensor is not None)) or "nothing"
        raise InputError(f"this call takes the inputs {', '.join(self._names(stacks))}; it was given {got}")
