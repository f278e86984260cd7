"""Attention over listed blocks by torch's flex attention, whose compiled kernel skips all other blocks on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import Context
from .flash import HALF
from .linear import computed_in

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

TILE = 128
"""Tokens that its kernel takes at once: blocks are handed over in tiles of so many, or each as one where it is more."""


def unfit(block: int, head_dim: int) -> str:
    """Say why flex attention can't serve blocks of `block` tokens and heads of `head_dim`; empty where it can."""
    if TILE % block and block % TILE:
        return f"flex attention takes blocks that divide {TILE}, or that it divides, not {block}"
    return "" if head_dim >= 16 else f"flex attention takes heads from 16 on, not {head_dim}"


def takes(q: Tensor, context: Context) -> bool:
    """Say whether its kernel is told all that matters: half precision on CUDA, whole rows, no bias on scores."""
    return q.is_cuda and computed_in(q) in HALF and context.plain and not context.scored and not context.asked


def block_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, *, scale: float) -> Tensor:
    """Mix the values that `mask` lets each query see (Dong et al. 2024).

    q (B, T, H, D); k, v (B, T, K, D) with K dividing H. Returns (B, T, H, D), in half precision.
    """
    half = computed_in(q)
    q, k, v = (t.to(half).transpose(1, 2) for t in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    mixed = _compiled()(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped)
    return cast(Tensor, mixed).transpose(1, 2)


def block_mask(table: Tensor, block: int, length: int, *, causal: bool) -> BlockMask:
    """Return the mask of `length` tokens in blocks of `block` whose row of `table` (N, N) bool says what they see.

    `causal`: whether no token of a block sees later ones of its own; `table` then holds no later block. Small blocks
    share a tile, of which the kernel skips what no block sees, and asks token by token what only some see.
    """
    from torch.nn.attention.flex_attention import BlockMask

    size = max(block, TILE)
    inside = torch.eye(table.shape[0], dtype=torch.bool, device=table.device) if causal else torch.zeros_like(table)
    # What lies beyond the last block is seen by none, and bounds no tile.
    some, whole = _tiled(table, size // block, False).any(-1), _tiled(table & ~inside, size // block, True).all(-1)

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        chosen = table[q // block, k // block]
        return chosen & (q >= k) if causal else chosen

    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole), *_listed(whole), BLOCK_SIZE=size, mask_mod=seen, seq_lengths=(length, length)
    )


def _tiled(table: Tensor, blocks: int, beyond: bool) -> Tensor:
    """Return table (N, N) in tiles of `blocks` by `blocks`, (M, M, blocks * blocks); `beyond` fills the last."""
    end = -table.shape[0] % blocks
    filled = F.pad(table, (0, end, 0, end), value=beyond)
    tiles: Tensor = filled.unflatten(1, (-1, blocks)).unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2)
    return tiles


def _listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks each sees, (1, 1, N), and which, (1, 1, N, N), those first, in order."""
    order = torch.argsort(table.logical_not().to(torch.int8), dim=1, stable=True)
    return table.sum(1).to(torch.int32)[None, None], order.to(torch.int32)[None, None]


_made: list[Callable[..., Any]] = []


def _compiled() -> Callable[..., Any]:
    """Return flex attention, compiled: the kernel is made for what it is called with."""
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling():
        return flex_attention
    if not _made:
        _made.append(torch.compile(flex_attention))
    return _made[0]
