"""States with slots: what grows has room for tokens to come, and token i of a row stands in slot i."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import PluginError
from .attention import is_exporting
from .block import Block
from .context import Context
from .inputs import Input
from .state import PAST, SEEN, Declared, Memories, State

if TYPE_CHECKING:
    from .stack import Stack

MASK = "attention_mask"
UNCOUNTED = 1
"""How much of a graph's state may be padding: any of it, of columns that a graph does not count."""


def step_inputs(stack: Stack) -> dict[str, Input]:
    """Declare the raw inputs of a step with a state in slots: a mask covers all columns since the first step."""
    declared = stack.inputs().items()
    return {name: replace(put, dims=("batch", "total")) if name == MASK else put for name, put in declared}


def step_declared(stack: Stack) -> Declared:
    """Declare the state of such a step; how many tokens came before follows from the mask, where there is one."""
    declared = stack.declared(slots=True).items()
    return {name: rule for name, rule in declared if name != SEEN or not stack.embedding.maskable}


def resume(
    stack: Stack, inputs: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], State]:
    """Return the inputs and the state of a step, as `Stack.forward` takes them, for those that a graph is given."""
    given, kept = dict(inputs), dict(tensors)
    appends = ((name, rule.dims.index(PAST)) for name, rule in stack.declared().items() if rule.grows == "append")
    room = next((kept[name].shape[dim] for name, dim in appends if name in kept), None)
    if stack.embedding.maskable:
        length = next(given[name].shape[1] for name, put in stack.feeds().items() if "sequence" in put.dims)
        mask = given[MASK]
        # By index: a slice from a length on would fix the length.
        new = torch.arange(length, device=mask.device) + (mask.shape[1] - length)
        given[MASK] = mask.index_select(1, new)
        kept[SEEN] = mask.sum(1) - given[MASK].sum(1)
    return given, State(kept, padded=UNCOUNTED, room=room)


Growing = Sequence[tuple[str, str, int]]
"""What of a block's state grows with tokens: sublayer, name, and the dimension along which it does."""


def growing(block: Block) -> Growing:
    """Return what a block declares as `append`."""
    return [
        (sub, key, rule.dims.index(PAST))
        for sub, layer in block.sublayers().items()
        for key, rule in layer.declared().items()
        if rule.grows == "append"
    ]


def run_in_slots(
    block: Block, x: Tensor, contexts: Mapping[str, Context], before: Mapping[str, Memories], grown: Growing, where: str
) -> tuple[Tensor, dict[str, Memories]]:
    """Run a block, `where` being its name, and check that what its parts declare as `append` stands in slots.

    Raises:
        PluginError: a part makes it longer.
    """
    written, used = contexts["attention"].written, contexts["attention"].used
    assert written is not None
    count = len(written)
    try:
        x, after = block(x, contexts, before)
    except Exception as error:  # whatever a part makes of keys that are more than it is told of
        # A compiled part's own words say more: what it is made of need not have run.
        if grown and len(written) == count and not contexts["attention"].steady:
            raise _longer(where, grown[0]) from error
        raise
    for entry in grown:
        sub, key, dim = entry
        was, now = before[sub][key], after[sub][key]
        if used is not None:
            # What `append` gave is a view of the slots in use: all of them are kept.
            if now.shape[dim] != used or now.data_ptr() != was.data_ptr():
                raise _longer(where, entry)
            after[sub][key] = was
        elif now.shape[dim] != was.shape[dim]:
            raise _longer(where, entry)
    return x, after


def widened(state: State, declared: Declared, room: int) -> State:
    """Return a state with slots for `room` columns, no fewer than it has: what it holds is copied."""
    assert state.room is not None
    assert state.room <= room
    tensors = dict(state.tensors)
    for name, rule in declared.items():
        if rule.grows == "append" and name in tensors:
            old, dim = tensors[name], rule.dims.index(PAST)
            sizes = list(old.shape)
            sizes[dim] = room - sizes[dim]
            tensors[name] = torch.cat([old, old.new_full(sizes, rule.fill)], dim=dim)
    return replace(state, tensors=tensors, room=room)


def steady(state: State) -> State:
    """Return a state with room, of which each step of one token does the same as the one before: for no gradients."""
    return replace(state, columns=0, padded=UNCOUNTED, steady=True)


def in_place(state: State | None) -> bool:
    """Say whether a pass may write to the slots of a state as they are: without gradients, compiling or exporting."""
    if state is None or state.room is None or state.padded > state.columns:  # a graph's: which slots are in use?
        return False
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or is_exporting())


def _longer(where: str, entry: tuple[str, str, int]) -> PluginError:
    sub, key, dim = entry
    return PluginError(
        f"{where}.{sub}: does not put new entries of {key!r} into the slots that there are, as an exported graph must: "
        f"take context.append(state[{key!r}], new, dim={dim}) in place of torch.cat"
    )
