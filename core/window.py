"""A window over tokens, cut into blocks: each block of queries meets the keys of its own block and its neighbours'."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import Context
from .position import in_each_row
from .ring import ring_in_order
from .softmax import softmax_attention
from .state import Memories
from .tokens import Tokens


@dataclass(frozen=True, eq=False)
class WindowBlocks:
    """Hold N blocks of a window's length, with all keys that their queries may see at a distance below it.

    q (B * N, window, H, D); k, v (B * N, S, K, D). Their tokens have B * N rows, or N where all rows stand alike.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_tokens: Tokens
    k_tokens: Tokens
    blocks: int

    def mixed(self, mask: Tensor, context: Context, length: int, *, scale: float, cap: float | None = None) -> Tensor:
        """Mix what `mask` lets the queries see; returns the first `length` columns, (B, T, H, D)."""
        rows = self.q.shape[0]
        bias = context.score(self.q_tokens, self.k_tokens, self.q, self.k)
        if mask.shape[0] != rows:  # all rows stand at the same positions
            mask = mask.repeat(rows // mask.shape[0], 1, 1)
            bias = None if bias is None else in_each_row(bias, rows)
        y = softmax_attention(self.q, self.k, self.v, scale=scale, mask=mask, bias=bias, cap=cap)
        mixed: Tensor = y.unflatten(0, (rows // self.blocks, self.blocks)).flatten(1, 2)
        return mixed[:, :length]


def window_blocks(
    q: Tensor, k: Tensor, v: Tensor, context: Context, ring: Memories | None, *, window: int, causal: bool
) -> WindowBlocks:
    """Cut queries into blocks of `window`; block i sees the keys of block i - 1 (the ring first), i, and i + 1.

    q (B, T, H, D); k, v (B, T, K, D); `ring`: k and v of the newest tokens before these, (B, window, K, D).
    """
    tokens, length = context.tokens, q.shape[1]
    blocks = -(-length // window)
    end = blocks * window - length
    right = 0 if causal else window
    if ring is None:
        k, v = (F.pad(t, (0, 0, 0, 0, window, end + right)) for t in (k, v))
    else:
        assert context.seen is not None
        k, v = (
            F.pad(torch.cat([ring_in_order(old, context.seen), new], dim=1), (0, 0, 0, 0, 0, end + right))
            for old, new in ((ring["k"], k), (ring["v"], v))
        )
    q_tokens, k_tokens = tokens.once(
        ("window blocks", window), lambda: _block_tokens(tokens, context.seen, blocks, window, right)
    )
    span = 2 * window + right

    def fold(x: Tensor, size: int) -> Tensor:
        """Return windows of `size` columns, a window apart: (B * blocks, size, H, D)."""
        return x.unfold(1, size, window).movedim(-1, 2).flatten(0, 1)

    q = fold(F.pad(q, (0, 0, 0, 0, 0, end)), window)
    return WindowBlocks(q, fold(k, span), fold(v, span), q_tokens, k_tokens, blocks)


def _block_tokens(tokens: Tokens, seen: Tensor | None, blocks: int, window: int, right: int) -> tuple[Tokens, Tokens]:
    """Return the tokens of each block's queries and keys, (B * blocks, size); (blocks, size) where rows agree."""
    end, rows = blocks * window - tokens.pos.shape[1], tokens.rows
    tokens = tokens.map(lambda t: t.expand(rows, -1))
    first = tokens.pos[:, :1] if seen is not None else torch.zeros_like(tokens.pos[:, :1])
    before = first + torch.arange(-window, 0, device=first.device)
    real = torch.ones_like(tokens.pos, dtype=torch.bool) if tokens.valid is None else tokens.valid
    keys = Tokens(
        F.pad(torch.cat([before, tokens.pos], dim=1), (0, end + right)),
        F.pad(torch.cat([before >= 0, real], dim=1), (0, end + right)),
        None if tokens.doc is None else F.pad(tokens.doc, (window, end + right), value=-1),
        {name: F.pad(mark, (window, end + right)) for name, mark in tokens.marks.items()},
    )
    queries = tokens.map(lambda t: F.pad(t, (0, end)))
    return (
        queries.map(lambda t: t.unfold(1, window, window).flatten(0, 1)),
        keys.map(lambda t: t.unfold(1, 2 * window + right, window).flatten(0, 1)),
    )
