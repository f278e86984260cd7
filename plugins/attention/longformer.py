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

    Which tokens are global the input `global_attention_mask` says. They ask with queries of their own, for keys and
    values of their own: the set `_global`. By all others they are seen as any token is, once.
    """

    lowers: ClassVar[Mapping[str, str]] = {"onnx": "masked"}  # one Attention in place of its parts
    sets: ClassVar[tuple[str, ...]] = ("", "_global")
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"two_sided", "documents", "rotate", "score", "compile"}),
        lacks={
            "causal": "all tokens see the global ones, wherever these stand",
            "cross": "a window compares positions of one sequence, and a memory's are those of another",
            "pairs": "its window follows the columns of one text",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 6, "window": 8},
        {"n_heads": 6, "window": 2, "first": True},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """window: tokens seen besides the token itself, half of them on each side. first: whether the first token is
        global of a text for which a call chooses none.
        """

        window: int
        first: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.window < 2 or self.window % 2:
                raise ValueError(f"window: {self.window} has no half for each side; an even number, at least 2")

    def reads(self) -> Mapping[str, Input]:
        """Read which tokens are global: 1 there, 0 elsewhere."""
        return {GLOBAL: Input(("batch", "sequence"), "int64", high=2, optional=True)}

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return who may see whom: all whom the model's rule allows, where one is near the other or one is global."""
        q, k = self._told(q), self._told(k)
        chosen = self._near(q, k) | _marked(k).unsqueeze(1) | _marked(q).unsqueeze(2)
        return visible(q, k, causal=False) & chosen

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix in blocks of half a window, each seeing its neighbours and the global tokens: linear in T.

        Few tokens take one dense mask; so do global tokens where their number can't be asked for: while compiling.
        """
        tokens, side = self._told(context.tokens), self.config.window // 2
        if context.weights is not None or is_exporting():
            return self.reference(q, k, v, context, state)
        if q.shape[1] <= 3 * side or (GLOBAL in tokens.marks and (torch.compiler.is_compiling() or q.is_meta)):
            return self.masked(q, k, v, context, state)
        order, those = tokens.once("global tokens", lambda: _listed(tokens))
        y = self._in_blocks(*_set(0, q, k, v), context.of(0), tokens, order, those)
        if order.shape[1]:
            y = self._from_global(y, *_set(1, q, k, v), context.of(1), tokens, order, those)
        return y, None

    def masked(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute `forward` by torch's fused kernel with dense masks, whatever the length."""
        tokens, found = self._told(context.tokens), []
        mask = tokens.once(("longformer", self.config.window), lambda: self.visible(tokens, tokens))
        for place in range(2 if GLOBAL in tokens.marks else 1):
            qs, ks, vs = _set(place, q, k, v)
            bias = context.of(place).score(tokens, tokens, qs, ks)
            found.append(softmax_attention(qs, ks, vs, scale=self.scale, mask=mask, bias=bias))
        return _merged(found, tokens), None

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute all scores of both sets, mask what is not seen, and take the softmax."""
        tokens, found, weights = self._told(context.tokens), [], []
        mask = self.visible(tokens, tokens)
        for place in range(2):
            qs, ks, vs = _set(place, q, k, v)
            bias = context.of(place).score(tokens, tokens, qs, ks)
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
        near: Tensor = distance.abs() <= self.config.window // 2
        return near

    def _told(self, tokens: Tokens) -> Tokens:
        """Return tokens marked where they are global; as they are, where none is."""
        if GLOBAL not in tokens.marks and not self.config.first:
            return tokens
        return tokens.once(("told", self.config.first), lambda: self._telling(tokens))

    def _telling(self, tokens: Tokens) -> Tokens:
        found = _marked(tokens) if tokens.valid is None else _marked(tokens) & tokens.valid
        if self.config.first:
            if tokens.doc is None:
                chosen = found.any(1, keepdim=True)
            else:
                chosen = (visible(tokens, tokens, causal=False) & found.unsqueeze(1)).any(2)
            first = tokens.pos == 0 if tokens.valid is None else (tokens.pos == 0) & tokens.valid
            found = found | (first & ~chosen)
        return Tokens(tokens.pos, tokens.valid, tokens.doc, {**tokens.marks, GLOBAL: found.long()})

    def _in_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, tokens: Tokens, order: Tensor, those: Tokens
    ) -> Tensor:
        """Return what every token makes of those near it, and of the global ones: (B, T, H, D).

        order: the columns of the global tokens, (B or 1, G); those: these tokens.
        """
        (batch, length), block = q.shape[:2], self.config.window // 2
        blocks = -(-length // block)
        chosen = torch.arange(blocks, device=q.device)[:, None] + torch.arange(-1, 2, device=q.device)
        chosen = chosen.masked_fill(chosen >= blocks, -1).unsqueeze(0)
        key = ("longformer blocks", block)
        q_tokens, k_tokens = tokens.once(key, lambda: block_tokens(tokens, chosen, block))
        mask = tokens.once((*key, "mask"), lambda: self._inside(q_tokens, k_tokens))
        q, near_k, near_v = cut(q, block).flatten(0, 1), gathered(k, chosen, block), gathered(v, chosen, block)
        bias = context.score(q_tokens, k_tokens, q, near_k)
        if order.shape[1]:
            far = tokens.once((*key, "global"), lambda: those.map(lambda t: t.repeat_interleave(blocks, 0)))
            far_k, far_v = (_take(x, order).repeat_interleave(blocks, 0) for x in (k, v))
            mask = torch.cat([mask, visible(q_tokens, far, causal=False)], dim=-1)
            if bias is not None:
                added = context.score(q_tokens, far, q, far_k)
                assert added is not None
                rows = max(len(bias), len(added))
                bias = torch.cat([each.expand(rows, -1, -1, -1) for each in (bias, added)], dim=-1)
            near_k, near_v = torch.cat([near_k, far_k], dim=1), torch.cat([near_v, far_v], dim=1)
        if mask.shape[0] != q.shape[0]:  # all rows stand at the same positions
            mask = mask.repeat(batch, 1, 1)
            bias = None if bias is None else in_each_row(bias, q.shape[0])
        y = softmax_attention(q, near_k, near_v, scale=self.scale, mask=mask, bias=bias)
        mixed: Tensor = y.unflatten(0, (batch, blocks))
        return mixed.flatten(1, 2)[:, :length]

    def _inside(self, q: Tokens, k: Tokens) -> Tensor:
        """Return who sees whom within a window, without the global tokens, which come once, among themselves."""
        return visible(q, k, causal=False) & self._near(q, k) & ~_marked(k).unsqueeze(1)

    def _from_global(
        self, y: Tensor, q: Tensor, k: Tensor, v: Tensor, context: Context, tokens: Tokens, order: Tensor, those: Tokens
    ) -> Tensor:
        """Return y (B, T, H, D) with what the global tokens make of all in their places."""
        q, marked = _take(q, order), _marked(tokens)
        bias = context.score(those, tokens, q, k)
        mixed = softmax_attention(q, k, v, scale=self.scale, mask=visible(those, tokens, causal=False), bias=bias)
        place = (marked.long().cumsum(1) - 1).clamp(min=0)
        return torch.where(marked[:, :, None, None], _take(mixed, place), y)


def _marked(tokens: Tokens) -> Tensor:
    """Return which tokens are global, (B, T) bool; (1, T) where nothing says so."""
    return (tokens.marks[GLOBAL] if GLOBAL in tokens.marks else torch.zeros_like(tokens.pos[:1])).bool()


def _listed(tokens: Tokens) -> tuple[Tensor, Tokens]:
    """Return the columns of the global tokens (B or 1, G), for the most that a row has, and these tokens."""
    packing = Packing.of(_marked(tokens))
    most = int(packing.length.max()) if GLOBAL in tokens.marks and len(packing.length) else 0  # once a pass
    order, there = (t.expand(tokens.rows, -1)[:, :most] for t in (packing.order, packing.valid))
    those = tokens.map(lambda t: t.expand(tokens.rows, -1).gather(1, order))
    return order, Tokens(those.pos, there, those.doc, those.marks)


def _set(place: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return one set of queries, keys and values: 0 sees those near and the global ones, 1 all from the global ones."""
    return q.chunk(2, dim=2)[place], k.chunk(2, dim=2)[place], v.chunk(2, dim=2)[place]


def _merged(found: list[Tensor], tokens: Tokens) -> Tensor:
    """Return the first of two (B, T, H, D), and the second at global tokens."""
    return found[0] if len(found) == 1 else torch.where(_marked(tokens)[:, :, None, None], found[1], found[0])


def _take(x: Tensor, columns: Tensor) -> Tensor:
    """Return some columns (B or 1, G) of x (B, T, H, D)."""
    return x.gather(1, columns[:, :, None, None].expand(len(x), -1, *x.shape[2:]))
