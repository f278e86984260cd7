"""Attention over listed blocks by torch's flex attention, whose compiled kernel skips all other blocks on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .context import Context
from .flash import HALF
from .linear import computed_in

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

LEAST = 64
"""Its kernel takes tiles of tokens, and a block has to be a number of them."""
TILES = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32}


def unfit(block: int, head_dim: int) -> str:
    """Say why flex attention can't serve blocks of `block` tokens and heads of `head_dim`; empty where it can."""
    if block % LEAST:
        return f"flex attention takes blocks of multiples of {LEAST}, not {block}"
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
    mixed = _compiled()(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped, kernel_options=TILES)
    return cast(Tensor, mixed).transpose(1, 2)


def block_mask(table: Tensor, block: int, length: int, *, causal: bool) -> BlockMask:
    """Return the mask of `length` tokens in blocks of `block` whose row of `table` (N, N) bool says what they see.

    `causal`: whether no token of a block sees later ones of its own; `table` then holds no later block.
    """
    from torch.nn.attention.flex_attention import BlockMask

    inside = torch.eye(table.shape[0], dtype=torch.bool, device=table.device) if causal else torch.zeros_like(table)
    part, whole = _listed(table & inside), _listed(table & ~inside)

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        chosen = table[q // block, k // block]
        return chosen & (q >= k) if causal else chosen

    return BlockMask.from_kv_blocks(
        *part,
        *whole,
        BLOCK_SIZE=block,
        mask_mod=seen,
        seq_lengths=(length, length),
    )


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
