"""Softmax attention to tokens at even distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core import sliced
from ...core.attention import Declaration, is_exporting
from ...core.context import Context
from ...core.heads import HeadsConfig
from ...core.masked import MaskedMechanism
from ...core.position import in_each_row
from ...core.ring import ring_in_order, ring_tokens, ring_write
from ...core.softmax import softmax_attention
from ...core.state import PAST, Declared, Memories, Remembered
from ...core.tokens import Tokens, join, visible
from ...core.window import window_blocks


class DilatedAttention(MaskedMechanism):
    """Let every token see itself and every `dilation`-th token from there, `window` of them on a side, or all.

    With a window it is that of Beltagy et al. (2020); without one, the strided half of Child et al. (2019). Tokens
    whose columns leave the same remainder see each other and no others: they are a text of their own.
    """

    lowers: ClassVar[Mapping[str, str]] = {"onnx": "masked"}  # one Attention in place of its parts
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "rotate", "score", "compile"}),
        lacks={
            "cross": "distances are between positions of one sequence, and a memory's are those of another",
            "pairs": "its columns are told apart by their distance, a number of tokens of one text",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 6, "window": 3, "dilation": 2},
        {"n_heads": 6, "dilation": 3},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """dilation: tokens from one that is seen to the next. window: how many are seen on a side, the token itself
        included; all of the text when left out.
        """

        dilation: int = 2
        window: int | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.dilation < 2:
                raise ValueError(f"dilation: {self.dilation} leaves no token out; at least 2, or attention local")
            if self.window is not None and self.window < 1:
                raise ValueError(f"window: {self.window} leaves a token nothing to see; at least 1, itself")

    config: Config

    @property
    def reach(self) -> int:
        """Return how many tokens the window spans, itself included; 0 where there is none."""
        return (self.config.window or 0) * self.config.dilation

    def growth(self) -> tuple[float, float]:
        """Return the exponents of time and memory: every nth token of all is a share of all."""
        return super().growth() if self.config.window else (2.0, 1.0)

    def declared(self) -> Declared:
        """Keep keys, turned, and values: those that the window spans, or all."""
        tail = (self.n_kv_heads, self.head_dim)
        entry = Remembered(("batch", self.reach, *tail), "ring") if self.reach else None
        entry = entry or Remembered(("batch", PAST, *tail), "append")
        return {"k": entry, "v": entry}

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return who may see whom: the model's rule, at distances that the dilation divides, within the window."""
        distance = q.pos.unsqueeze(2) - k.pos.unsqueeze(1)
        seen = visible(q, k, causal=self.site.causal) & (distance % self.config.dilation == 0)
        return seen & (distance.abs() < self.reach) if self.reach else seen

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix the tokens of each remainder as a text of their own: in slices or blocks of the window, or whole.

        Few tokens after others, or an export, take one dense mask.
        """
        length = q.shape[1]
        if context.weights is not None or is_exporting():
            return self.reference(q, k, v, context, state)
        if state is None:
            return (self._apart if context.plain and not context.scored else self._folded)(q, k, v, context), None
        if not self.reach or length <= self.reach:
            return self.masked(q, k, v, context, state)
        assert context.seen is not None
        # What is remembered comes first, in order; its own queries are of no use.
        seen = context.seen
        past = ring_tokens(seen, self.reach).map(lambda t: ring_in_order(t, seen))
        k, v = (torch.cat([ring_in_order(state[name], seen), x], dim=1) for name, x in (("k", k), ("v", v)))
        tokens = context.tokens.once(("after a ring", self.reach), lambda: join(past, context.tokens))
        whole = replace(context, tokens=tokens)
        y = self._folded(F.pad(q, (0, 0, 0, 0, self.reach, 0)), k, v, whole)
        new = slice(self.reach, None)
        return y[:, new], self._written(k[:, new], v[:, new], context, state)

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        config = self.config
        whole = config.window is None or tokens <= self.reach
        kind = "" if whole else f" in slices; where scores take a bias, in blocks of {config.window}"
        return f"{config.dilation} texts, each by torch SDPA{kind}"

    def _extend(
        self, k: Tensor, v: Tensor, context: Context, state: Memories | None
    ) -> tuple[Tensor, Tensor, Tokens, Memories | None]:
        """Put what is remembered before k and v, and say which tokens stand there."""
        if state is None:
            return k, v, context.tokens, None
        if not self.reach:
            k, v = context.append(state["k"], k), context.append(state["v"], v)
            return k, v, context.keys, {"k": k, "v": v}
        assert context.seen is not None
        tokens = join(ring_tokens(context.seen, self.reach), context.tokens)
        after = self._written(k, v, context, state)
        return torch.cat([state["k"], k], dim=1), torch.cat([state["v"], v], dim=1), tokens, after

    def _written(self, k: Tensor, v: Tensor, context: Context, state: Memories) -> Memories:
        assert context.seen is not None
        seen, length = context.seen, context.length
        return {name: ring_write(state[name], x, seen, length) for name, x in (("k", k), ("v", v))}

    def _apart(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Mix plain tokens, one remainder after another."""
        config, length = self.config, q.shape[1]
        causal, found = self.site.causal, []
        for first in range(min(config.dilation, length)):
            own_q, own_k, own_v = (x[:, first :: config.dilation] for x in (q, k, v))
            count = own_q.shape[1]
            if config.window is None or count <= config.window:
                found.append(softmax_attention(own_q, own_k, own_v, scale=self.scale, causal=causal))
            elif sliced.takes(q, k, v, context):
                slices = context.tokens.once(("dilated slices", config, count), partial(self._slices, count, q.device))
                found.append(sliced.sliced_attention(own_q, own_k, own_v, slices, scale=self.scale))
            else:
                return self._folded(q, k, v, context)
        if not found:
            return q
        longest = found[0].shape[1]
        mixed = torch.stack([F.pad(y, (0, 0, 0, 0, 0, longest - y.shape[1])) for y in found], dim=2)
        return mixed.flatten(1, 2)[:, :length]

    def _slices(self, count: int, device: torch.device) -> list[sliced.Slice]:
        assert self.config.window is not None
        return sliced.window_slices(count, self.config.window, causal=self.site.causal, device=device)

    def _folded(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Mix all remainders at once, as rows of a batch."""
        config, (batch, length) = self.config, q.shape[:2]
        each = -(-length // config.dilation)
        tokens = context.tokens.once(("dilated", config.dilation), lambda: self._texts(context.tokens))
        q, k, v = (_fold(x, config.dilation) for x in (q, k, v))
        here = replace(context, tokens=tokens, seen=None)
        if config.window is None or each <= config.window:
            mask = here.once(("dilated mask", config), lambda: self.visible(tokens, tokens))
            bias = here.score(tokens, tokens, q, k)
            if mask.shape[0] != q.shape[0]:  # all rows stand at the same positions
                mask = mask.repeat(batch, 1, 1)
                bias = None if bias is None else in_each_row(bias, q.shape[0])
            y = softmax_attention(q, k, v, scale=self.scale, mask=mask, bias=bias)
        else:
            cut = window_blocks(q, k, v, here, None, window=config.window, causal=self.site.causal)
            mask = here.once(("dilated mask", config), lambda: self.visible(cut.q_tokens, cut.k_tokens))
            y = cut.mixed(mask, here, each, scale=self.scale)
        mixed: Tensor = y.unflatten(0, (batch, config.dilation)).transpose(1, 2).flatten(1, 2)
        return mixed[:, :length]

    def _texts(self, tokens: Tokens) -> Tokens:
        """Return the tokens of each remainder, (B * dilation, T / dilation), or (dilation, ...) where rows agree."""
        rows = tokens.rows
        tokens = tokens.map(lambda t: t.expand(rows, -1))
        real = torch.ones_like(tokens.pos, dtype=torch.bool) if tokens.valid is None else tokens.valid
        there = Tokens(tokens.pos, real, tokens.doc, tokens.marks)
        return there.map(lambda t: _fold(t, self.config.dilation))


def _fold(x: Tensor, dilation: int) -> Tensor:
    """Return x (B, T, ...) with columns of the same remainder in a row of their own, (B * dilation, T', ...)."""
    end = -x.shape[1] % dilation
    padded = F.pad(x, (0, 0) * (x.dim() - 2) + (0, end))
    folded: Tensor = padded.unflatten(1, (padded.shape[1] // dilation, dilation)).transpose(1, 2).flatten(0, 1)
    return folded
