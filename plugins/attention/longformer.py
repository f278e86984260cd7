"""Softmax attention within a window, and all over for tokens that a call chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.attention import Declaration, Mechanism, is_exporting
from ...core.blocks import block_tokens, cut, gathered
from ...core.context import Context
from ...core.heads import HeadsConfig
from ...core.inputs import Input
from ...core.position import in_each_row
from ...core.softmax import softmax_attention, softmax_reference
from ...core.state import Memories
from ...core.tokens import Packing, Tokens, visible

GLOBAL = "global_attention_mask"


class LongformerAttention(Mechanism):
    """Let every token see those near it and the global ones, which see everything (Beltagy et al. 2020).

    Which tokens are global the input `global_attention_mask` says, none when it is left out. They ask with queries of
    their own, for keys and values of their own: the set `_global`. By all others they are seen as any token is, once.
    """

    lowers: ClassVar[Mapping[str, str]] = {"onnx": "masked"}  # one Attention in place of its parts
    sets: ClassVar[tuple[str, ...]] = ("", "_global")
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"two_sided", "documents", "rotate", "score", "compile"}),
        lacks={
            "causal": "all tokens see the global ones, wherever these stand",
            "cross": "a window compares positions of one sequence, and a memory's are those of another",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_heads": 6, "window": 8}, {"n_heads": 6, "window": 2})

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """window: tokens seen besides the token itself, half of them on each side."""

        window: int

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.window < 2 or self.window % 2:
                raise ValueError(f"window: {self.window} has no half for each side; an even number, at least 2")

    def reads(self) -> Mapping[str, Input]:
        """Read which tokens are global: 1 there, 0 elsewhere."""
        return {GLOBAL: Input(("batch", "sequence"), "int64", high=2, optional=True)}

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return who may see whom: all whom the model's rule allows, where one is near the other or one is global."""
        seen = visible(q, k, causal=False) & (self._near(q, k) | _marked(k).unsqueeze(1))
        return seen | (visible(q, k, causal=False) & _marked(q).unsqueeze(2))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix in blocks of half a window, each seeing its neighbours and the global tokens: linear in T.

        Few tokens take one dense mask; so do global tokens while compiling, where their number would be a break.
        """
        tokens, side = context.tokens, self.config.window // 2
        if context.weights is not None or is_exporting():
            return self.reference(q, k, v, context, state)
        if q.shape[1] <= 3 * side or (GLOBAL in tokens.marks and torch.compiler.is_compiling()):
            return self.masked(q, k, v, context, state)
        if GLOBAL not in tokens.marks:
            return self._in_blocks(*_first(q, k, v), context, None), None
        order, there = tokens.once("global tokens", lambda: _listed(_marked(tokens)))
        if order.shape[1] == 0:
            return self._in_blocks(*_first(q, k, v), context, None), None
        global_tokens = tokens.map(lambda t: t.expand(tokens.rows, -1).gather(1, order))
        global_tokens = Tokens(global_tokens.pos, there, global_tokens.doc, global_tokens.marks)
        y = self._in_blocks(*_first(q, k, v), context, (order, global_tokens))
        return self._from_global(y, *_second(q, k, v), context, order, global_tokens), None

    def masked(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute `forward` by torch's fused kernel with dense masks, whatever the length."""
        tokens = context.tokens
        mask = context.once(("longformer", self.config), lambda: self.visible(tokens, tokens))
        found = []
        for qs, ks, vs in (_first(q, k, v), _second(q, k, v))[: 2 if GLOBAL in tokens.marks else 1]:
            bias = context.score(tokens, tokens, qs, ks)
            found.append(softmax_attention(qs, ks, vs, scale=self.scale, mask=mask, bias=bias))
        return _merged(found, tokens), None

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute all scores of both sets, mask what is not seen, and take the softmax."""
        tokens, found, weights = context.tokens, [], []
        mask = self.visible(tokens, tokens)
        for qs, ks, vs in (_first(q, k, v), _second(q, k, v)):
            bias = context.score(tokens, tokens, qs, ks)
            y, given = softmax_reference(qs, ks, vs, mask, bias, self.scale)
            found.append(y)
            weights.append(given.transpose(1, 2))
        if context.weights is not None:
            context.weights.append(_merged(weights, tokens).transpose(1, 2))
        return _merged(found, tokens), None

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        side = self.config.window // 2
        return "torch SDPA, masked" if tokens <= 3 * side else f"torch SDPA in blocks of {side}"

    def _near(self, q: Tokens, k: Tokens) -> Tensor:
        distance: Tensor = q.pos.unsqueeze(2) - k.pos.unsqueeze(1)
        return distance.abs() <= self.config.window // 2

    def _in_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, others: tuple[Tensor, Tokens] | None
    ) -> Tensor:
        """Return what every token makes of those near it, and of the global ones: (B, T, H, D).

        others: the columns of the global tokens, (B, G), and these tokens.
        """
        (batch, length), tokens, block = q.shape[:2], context.tokens, self.config.window // 2
        blocks = -(-length // block)
        chosen = torch.arange(blocks, device=q.device)[:, None] + torch.arange(-1, 2, device=q.device)
        chosen = chosen.masked_fill(chosen >= blocks, -1).unsqueeze(0)
        key = ("longformer blocks", block)
        q_tokens, k_tokens = tokens.once(key, lambda: block_tokens(tokens, chosen, block))
        mask = context.once((*key, "mask"), lambda: self._inside(q_tokens, k_tokens))
        q, near_k, near_v = cut(q, block).flatten(0, 1), gathered(k, chosen, block), gathered(v, chosen, block)
        bias = context.score(q_tokens, k_tokens, q, near_k)
        if mask.shape[0] != q.shape[0]:  # all rows stand at the same positions
            mask = mask.repeat(batch, 1, 1)
            bias = None if bias is None else in_each_row(bias, q.shape[0])
        if others is not None:
            order = others[0]
            those = tokens.once((*key, "global"), lambda: others[1].map(lambda t: t.repeat_interleave(blocks, 0)))
            far_k, far_v = (_take(x, order).repeat_interleave(blocks, 0) for x in (k, v))
            mask = torch.cat([mask, visible(q_tokens, those, causal=False)], dim=-1)
            if bias is not None:
                added = context.score(q_tokens, those, q, far_k)
                assert added is not None
                bias = torch.cat([each.expand(len(q), -1, -1, -1) for each in (bias, added)], dim=-1)
            near_k, near_v = torch.cat([near_k, far_k], dim=1), torch.cat([near_v, far_v], dim=1)
        y = softmax_attention(q, near_k, near_v, scale=self.scale, mask=mask, bias=bias)
        return y.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :length]

    def _inside(self, q: Tokens, k: Tokens) -> Tensor:
        """Return who sees whom within a window, without the global tokens, which come once, among themselves."""
        return visible(q, k, causal=False) & self._near(q, k) & ~_marked(k).unsqueeze(1)

    def _from_global(
        self, y: Tensor, q: Tensor, k: Tensor, v: Tensor, context: Context, order: Tensor, those: Tokens
    ) -> Tensor:
        """Return y (B, T, H, D) with what the global tokens make of all in their places."""
        tokens, q = context.tokens, _take(q, order)
        bias = context.score(those, tokens, q, k)
        mixed = softmax_attention(q, k, v, scale=self.scale, mask=visible(those, tokens, causal=False), bias=bias)
        marked = _marked(tokens)
        place = (marked.long().cumsum(1) - 1).clamp(min=0)
        return torch.where(marked[:, :, None, None], _take(mixed, place), y)


def _marked(tokens: Tokens) -> Tensor:
    """Return which tokens are global, (B, T) bool; (1, T) where a call says of none."""
    found = tokens.marks[GLOBAL].bool() if GLOBAL in tokens.marks else torch.zeros_like(tokens.pos[:1]).bool()
    return found if tokens.valid is None else found & tokens.valid


def _listed(marked: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns of the global tokens (B, T), the most that a row has, and which of them are there: (B, G)."""
    packing = Packing.of(marked)
    most = int(packing.length.max()) if len(marked) else 0  # a device is asked for it once a pass
    return packing.order[:, :most], packing.valid[:, :most]


def _first(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries, keys and values by which tokens see those near them and the global ones."""
    return q.chunk(2, dim=2)[0], k.chunk(2, dim=2)[0], v.chunk(2, dim=2)[0]


def _second(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return those by which global tokens see all."""
    return q.chunk(2, dim=2)[1], k.chunk(2, dim=2)[1], v.chunk(2, dim=2)[1]


def _merged(found: list[Tensor], tokens: Tokens) -> Tensor:
    """Return the first of two (B, T, H, D), and the second at global tokens."""
    return found[0] if len(found) == 1 else torch.where(_marked(tokens)[:, :, None, None], found[1], found[0])


def _take(x: Tensor, columns: Tensor) -> Tensor:
    """Return some columns (B, G) of x (B, T, H, D)."""
    return x.gather(1, columns[:, :, None, None].expand(-1, -1, *x.shape[2:]))
