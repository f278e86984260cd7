"""Compile a model by region: layers that are alike share one graph, so that depth costs no compile time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..core.attention import Attention
from ..core.block import Block

GRAPHS_A_LAYER = 8
"""Graphs that one kind of layer may need: where it comes first and where it follows, in training and in evaluation, of
rows with several documents and with one.
"""
ROOMS = 20
"""How often a state's room is doubled at most: steps with a state have graphs of their own for each room."""


def compile_regions(model: nn.Module, *, steps: bool = False, by: Callable[..., object] = Block.compile) -> str:
    """Have every block of a model compiled, leave the rest of it as it is, and say how many are.

    A block is compiled once for all layers that are alike, whatever their number; where the first layer of a pass makes
    what the others share (masks), it has a graph of its own. Blocks whose attention
    declares that it can't be compiled stay as they are; any other that can't is an error of torch's. `steps`: whether
    all that is run are steps of a size: graphs then leave none open. `by`: what has a block compiled, given torch's
    options.
    """
    import torch._dynamo.config as limits  # which brings torch's compiler with it

    blocks = {block: _attentions(block) for block in model.modules() if isinstance(block, Block)}
    kinds = {_kind(block) for block in blocks}
    settings: Any = limits
    most = GRAPHS_A_LAYER * len(kinds) * (ROOMS if steps else 1)
    settings.recompile_limit = max(settings.recompile_limit, most)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, most)
    done = 0
    for block, attentions in blocks.items():
        if not any("compile" in each.declares.lacks for each in attentions):
            whole = all(each.in_one_graph() for each in attentions)
            by(block, fullgraph=whole, dynamic=False if steps else None)
            done += 1
    return f"{done} of {len(blocks)} layers compiled"


def _kind(block: Block) -> str:
    """Return what one block has in common with those that share its graphs: its parts, their options and its own."""
    own = {name: value for name, value in vars(block).items() if isinstance(value, str | float | int)}
    return f"{block} {own} {[getattr(module, 'config', None) for module in block.modules()]}"


def _attentions(block: Block) -> list[Attention]:
    """Return the attentions of a block."""
    inner = (getattr(sublayer, "mechanism", sublayer) for sublayer in block.sublayers().values())
    return [each for each in inner if isinstance(each, Attention)]
