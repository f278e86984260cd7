"""Compile a model by region: layers that are alike share one graph, so that depth costs no compile time."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core.attention import Attention
from ..core.block import Block

GRAPHS_A_LAYER = 4
"""Graphs that one kind of layer may need: where it comes first and where it follows, in training and in evaluation."""


def compile_regions(model: nn.Module) -> None:
    """Have every block of a model compiled, and leave the rest of it as it is.

    A block is compiled once for all layers that are alike, whatever their number; where the first layer of a pass makes
    what the others share (masks), it has a graph of its own. Blocks whose attention
    declares that it can't be compiled stay as they are; any other that can't is an error of torch's.
    """
    import torch._dynamo.config as limits  # which brings torch's compiler with it

    blocks = {block: _attentions(block) for block in model.modules() if isinstance(block, Block)}
    kinds = {repr(block) for block in blocks}
    settings: Any = limits
    settings.recompile_limit = max(settings.recompile_limit, GRAPHS_A_LAYER * len(kinds))
    for block, attentions in blocks.items():
        if not any("compile" in each.declares.lacks for each in attentions):
            block.compile(fullgraph=all(each.in_one_graph() for each in attentions))


def _attentions(block: Block) -> list[Attention]:
    """Return the attentions of a block."""
    inner = (getattr(sublayer, "mechanism", sublayer) for sublayer in block.sublayers().values())
    return [each for each in inner if isinstance(each, Attention)]
