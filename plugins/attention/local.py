"""Softmax attention within a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core import flash, sliced
from ...core.attention import Declaration, is_exporting
from ...core.component import Site
from ...core.context import Context
from ...core.heads import HeadsConfig
from ...core.masked import MaskedMechanism
from ...core.ring import ring_tokens, ring_write
from ...core.softmax import softmax_attention
from ...core.state import Declared, Memories, Remembered
from ...core.tokens import Tokens, join, visible
from ...core.window import window_blocks


class LocalAttention(MaskedMechanism):
    """Let every token see the `window` nearest: itself and those before it, or both sides (Beltagy et al. 2020)."""

    lowers: ClassVar[Mapping[str, str]] = {"onnx": "masked"}  # one Attention in place of its parts
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "rotate", "score", "compile"}),
        lacks={
            "cross": "a window compares positions of one sequence, and a memory's are those of another",
            "pairs": "its blocks and its ring follow the columns of one text, a window apart",
        },
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """window: tokens seen on a side, the token itself included: those at a distance below it. around: instead, how
        many tokens are seen around each, half of them on a side.

        soft_cap: how far scaled scores may be from 0; they near it as a tanh does (Gemma Team 2024).
        """

        window: int | None = None
        around: int | None = None
        soft_cap: float | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.window is None and self.around is None:
                raise ValueError("window: is missing: it should be a number of tokens, where around is none")
            if self.window is not None and self.around is not None:
                raise ValueError(f"window: {self.window} stands beside around, {self.around}: leave one of them null")
            if self.window is not None and self.window < 1:
                raise ValueError(f"window: {self.window} leaves a token nothing to see; at least 1, itself")
            if self.around is not None and self.around < 0:
                raise ValueError(f"around: {self.around} is not a number of tokens; at least 0")
            if self.soft_cap is not None and self.soft_cap <= 0.0:
                raise ValueError(f"soft_cap: {self.soft_cap} leaves scores no room; above 0")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if config.around is None:
            assert config.window is not None
            self.window = config.window
        else:
            self.window = config.around // 2 + 1
        self.cap = config.soft_cap
        self.unfit = "no kernel caps scores" if config.soft_cap is not None else flash.unfit(self.head_dim)

    def declared(self) -> Declared:
        """Keep the newest `window` keys, turned, and values."""
        dims = ("batch", self.window, self.n_kv_heads, self.head_dim)
        return {"k": Remembered(dims, "ring"), "v": Remembered(dims, "ring")}

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return who may see whom: the model's rule, at a distance below the window."""
        distance = q.pos.unsqueeze(2) - k.pos.unsqueeze(1)
        if not self.site.causal:
            distance = distance.abs()
        near: Tensor = distance < self.window
        return visible(q, k, causal=self.site.causal) & near

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix in blocks of the window's length, each seeing itself and its neighbours: linear in T.

        Plain tokens that all fit into the window take torch's causal kernel; few tokens after a ring, or an export,
        one dense mask. On CUDA, FlashAttention has a window of its own; on CPU, slices of the keys are enough.
        """
        window, length = self.window, q.shape[1]
        if context.weights is not None or is_exporting():
            return self.reference(q, k, v, context, state)
        if state is None and length <= window and context.tokens.plain:
            bias = context.score(context.tokens, context.tokens, q, k)
            return softmax_attention(
                q, k, v, scale=self.scale, causal=self.site.causal, bias=bias, cap=self.config.soft_cap
            ), None
        if state is None and not self.unfit and flash.takes(q, context):
            after = 0 if self.site.causal else window - 1
            return flash.window_attention(q, k, v, context, scale=self.scale, before=window - 1, after=after), None
        if state is None and length > window and self.config.soft_cap is None and sliced.takes(q, k, v, context):
            slices = context.tokens.once(("window slices", window), lambda: self._slices(length, q.device))
            return sliced.sliced_attention(q, k, v, slices, scale=self.scale), None
        return (self.masked if length <= window else self._in_blocks)(q, k, v, context, state)

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        window, why = self.window, sliced.unfit()
        kernel = "torch SDPA" if self.config.soft_cap is None else "reference (no kernel caps scores)"
        if tokens <= window:
            return kernel
        if self.config.soft_cap is not None:
            return f"{kernel} in blocks of {window}"
        blocks = f"in blocks of {window}"
        return f"{kernel} {blocks}: {why}" if why else f"{kernel} in slices; where scores take a bias, {blocks}"

    def on_cuda(self) -> str:
        """Name FlashAttention, or say why it can't be taken."""
        return f"the same: {self.unfit}" if self.unfit else "FlashAttention with a window"

    def _slices(self, length: int, device: torch.device) -> list[sliced.Slice]:
        return sliced.window_slices(length, self.window, causal=self.site.causal, device=device)

    def _extend(
        self, k: Tensor, v: Tensor, context: Context, state: Memories | None
    ) -> tuple[Tensor, Tensor, Tokens, Memories | None]:
        """Put the ring before k and v, and say which tokens stand there."""
        if state is None:
            return k, v, context.tokens, None
        assert context.seen is not None
        tokens = join(ring_tokens(context.seen, self.window), context.tokens)
        after = self._written(k, v, context, state)
        return torch.cat([state["k"], k], dim=1), torch.cat([state["v"], v], dim=1), tokens, after

    def _written(self, k: Tensor, v: Tensor, context: Context, state: Memories) -> Memories:
        assert context.seen is not None
        return {
            "k": ring_write(state["k"], k, context.seen, context.length),
            "v": ring_write(state["v"], v, context.seen, context.length),
        }

    def _in_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None
    ) -> tuple[Tensor, Memories | None]:
        """Cut queries into blocks of `window`; block i sees the keys of block i - 1 (the ring first), i, and i + 1."""
        length, window = q.shape[1], self.window
        after = None if state is None else self._written(k, v, context, state)
        cut = window_blocks(q, k, v, context, state, window=window, causal=self.site.causal)
        mask = context.once(("window mask", window), lambda: self.visible(cut.q_tokens, cut.k_tokens))
        return cut.mixed(mask, context, length, scale=self.scale, cap=self.config.soft_cap), after
