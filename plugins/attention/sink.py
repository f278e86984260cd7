"""Softmax attention within a window, and to the first few tokens besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core import sliced
from ...core.attention import Declaration, is_exporting
from ...core.context import Context
from ...core.heads import HeadsConfig
from ...core.masked import MaskedMechanism
from ...core.ring import head_write, ring_tokens, ring_write
from ...core.softmax import softmax_attention
from ...core.state import Declared, Memories, Remembered
from ...core.tokens import Tokens, join, visible
from ...core.window import window_blocks


class SinkAttention(MaskedMechanism):
    """Let every token see the `window` nearest, and the first few of its text (Xiao et al. 2023).

    The first tokens take up the attention that a window would leave nowhere to go. Positions are those in the text,
    where the paper counts them anew in what is kept: a step then costs no second rotation, and equals the same token
    of a whole pass.
    """

    lowers: ClassVar[Mapping[str, str]] = {"onnx": "masked"}  # one Attention in place of its parts
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "rotate", "score", "compile"}),
        lacks={
            "cross": "a window compares positions of one sequence, and a memory's are those of another",
            "pairs": "its blocks and its ring follow the columns of one text, a window apart",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 6, "window": 5, "sinks": 3},
        {"n_heads": 6, "window": 4, "sinks": 9},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """window: tokens seen on a side, the token itself included. sinks: first tokens that are seen from anywhere."""

        window: int
        sinks: int = 4

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.window < 1:
                raise ValueError(f"window: {self.window} leaves a token nothing near to see; at least 1, itself")
            if self.sinks < 1:
                raise ValueError(f"sinks: {self.sinks} first tokens are none; at least 1, or attention local")

    config: Config

    def declared(self) -> Declared:
        """Keep keys, turned, and values: of the first `sinks` tokens, and of the newest `window`."""
        tail = (self.n_kv_heads, self.head_dim)
        ring = Remembered(("batch", self.config.window, *tail), "ring")
        head = Remembered(("batch", self.config.sinks, *tail), "fixed")
        return {"k": ring, "v": ring, "head_k": head, "head_v": head}

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return who may see whom: the model's rule, at a distance below the window or among the first tokens."""
        distance = q.pos.unsqueeze(2) - k.pos.unsqueeze(1)
        near = (distance if self.site.causal else distance.abs()) < self.config.window
        return visible(q, k, causal=self.site.causal) & (near | (k.pos < self.config.sinks).unsqueeze(1))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix in blocks of the window's length, each seeing itself, its neighbours and the first tokens: linear in T.

        Plain tokens that all fit into the window take torch's causal kernel; few tokens, documents or an export one
        dense mask. On CPU, slices of the keys are enough.
        """
        window, length = self.config.window, q.shape[1]
        if context.weights is not None or is_exporting():
            return self.reference(q, k, v, context, state)
        if state is None and length <= window and context.tokens.plain:
            bias = context.score(context.tokens, context.tokens, q, k)
            return softmax_attention(q, k, v, scale=self.scale, causal=self.site.causal, bias=bias), None
        if state is None and sliced.takes(q, k, v, context):
            slices = context.tokens.once(("sink slices", self.config), lambda: self._slices(length, q.device))
            return sliced.sliced_attention(q, k, v, slices, scale=self.scale), None
        whole = length <= window or context.tokens.doc is not None
        return (self.masked if whole else self._in_blocks)(q, k, v, context, state)

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        window, why = self.config.window, sliced.unfit()
        if tokens <= window:
            return "torch SDPA"
        blocks = f"in blocks of {window}"
        return f"torch SDPA {blocks}: {why}" if why else f"torch SDPA in slices; where scores take a bias, {blocks}"

    def _slices(self, length: int, device: torch.device) -> list[sliced.Slice]:
        config, causal = self.config, self.site.causal
        return sliced.window_slices(length, config.window, causal=causal, device=device, first=config.sinks)

    def _extend(
        self, k: Tensor, v: Tensor, context: Context, state: Memories | None
    ) -> tuple[Tensor, Tensor, Tokens, Memories | None]:
        """Put the first tokens and the ring before k and v, and say which tokens stand there."""
        if state is None:
            return k, v, context.tokens, None
        assert context.seen is not None
        slot = torch.arange(self.config.sinks, device=k.device).unsqueeze(0)
        head = Tokens(slot, slot < context.seen.unsqueeze(1))
        ring = ring_tokens(context.seen, self.config.window)
        # What stands in the head as well as in the ring counts once.
        tokens = join(join(head, Tokens(ring.pos, ring.pos >= self.config.sinks)), context.tokens)
        after = self._written(k, v, context, state)
        k, v = (torch.cat([state[f"head_{name}"], state[name], new], dim=1) for name, new in (("k", k), ("v", v)))
        return k, v, tokens, after

    def _written(self, k: Tensor, v: Tensor, context: Context, state: Memories) -> Memories:
        assert context.seen is not None
        seen, length = context.seen, context.length
        after = {}
        for name, new in (("k", k), ("v", v)):
            after[name] = ring_write(state[name], new, seen, length)
            after[f"head_{name}"] = head_write(state[f"head_{name}"], new, seen, length)
        return after

    def _in_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None
    ) -> tuple[Tensor, Memories | None]:
        """Let each block see the first tokens beside its window; all rows are one document."""
        config, length = self.config, q.shape[1]
        after = None if state is None else self._written(k, v, context, state)
        cut = window_blocks(q, k, v, context, state, window=config.window, causal=self.site.causal)
        if after is None:
            first, heads = context.tokens[: config.sinks], (k[:, : config.sinks], v[:, : config.sinks])
        else:  # where no token sees later ones, none sees a slot that is not written yet
            first = Tokens(torch.arange(config.sinks, device=q.device).unsqueeze(0))
            heads = after["head_k"], after["head_v"]
        window = cut.k_tokens
        assert window.valid is not None
        near = replace(window, valid=window.valid & (window.pos >= config.sinks))  # what is first counts once
        rows = window.pos.shape[0] // cut.blocks
        first = first.map(lambda t: t.expand(rows, -1).repeat_interleave(cut.blocks, 0))
        k, v = (
            torch.cat([head.repeat_interleave(cut.blocks, 0), own], dim=1)
            for head, own in zip(heads, (cut.k, cut.v), strict=True)
        )
        cut = replace(cut, k=k, v=v, k_tokens=join(first, near))
        mask = context.once(("sink mask", config), lambda: self.visible(cut.q_tokens, cut.k_tokens))
        return cut.mixed(mask, context, length, scale=self.scale), after
