"""States with slots: what grows has room for tokens to come, and token i of a row stands in slot i."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import PluginError
from .block import Block
from .context import Context
from .inputs import Input
from .state import PAST, SEEN, Declared, Memories, State

if TYPE_CHECKING:
    from .stack import Stack

MASK = "attention_mask"


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
    return given, State(kept, padded=True, room=room)


def run_in_slots(
    block: Block, x: Tensor, contexts: Mapping[str, Context], before: Mapping[str, Memories], where: str
) -> tuple[Tensor, dict[str, Memories]]:
    """Run a block, `where` being its name, and check that what its parts declare as `append` stands in slots.

    Raises:
        PluginError: a part makes it longer.
    """
    written = contexts["attention"].written
    assert written is not None
    count = len(written)
    growing = [
        (sub, key, rule.dims.index(PAST))
        for sub, layer in block.sublayers().items()
        for key, rule in layer.declared().items()
        if rule.grows == "append"
    ]
    try:
        x, after = block(x, contexts, before)
    except Exception as error:  # whatever a part makes of keys that are more than it is told of
        if growing and len(written) == count:
            raise _longer(where, growing[0]) from error
        raise
    for entry in growing:
        sub, key, dim = entry
        if after[sub][key].shape[dim] != before[sub][key].shape[dim]:
            raise _longer(where, entry)
    return x, after


def _longer(where: str, entry: tuple[str, str, int]) -> PluginError:
    sub, key, dim = entry
    return PluginError(
        f"{where}.{sub}: does not put new entries of {key!r} into the slots that there are, as an exported graph must: "
        f"take context.append(state[{key!r}], new, dim={dim}) in place of torch.cat"
    )
