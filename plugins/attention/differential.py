"""Softmax attention from which a second one, of the same values, is taken away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.attention import Declaration, Mechanism, is_exporting
from ...core.component import Site
from ...core.context import Context
from ...core.heads import HeadsConfig
from ...core.linear import at_least_fp32
from ...core.moves import Layouts, Reshape, Stack, Take
from ...core.softmax import softmax_attention, softmax_reference
from ...core.state import MEMORY, PAST, Declared, Memories, Remembered

EPS = 1e-5
"""Added to the mean square that a head's result is divided by the root of."""


class DifferentialAttention(Mechanism):
    """Take the softmax map of every second head away from that of the head before it (Ye et al. 2024, equation 1).

    Heads 2i and 2i + 1 are one differential head, i: each has its own queries and keys, and their values, side by side,
    are the 2 D wide values of both maps, (softmax(q_2i k_2i) - lambda softmax(q_2i+1 k_2i+1)) v. What is mixed is
    brought to a mean square of 1 and multiplied by 1 - start. With G query pairs to a key pair, query pair i reads key
    pair i // G.
    """

    lowers: ClassVar[Mapping[str, str]] = {"onnx": "narrow"}  # whose Attention takes keys narrower than values
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "cross", "documents", "rotate", "score", "compile", "pairs"}), time=2.0
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 6},
        {"n_heads": 8, "n_kv_heads": 4, "head_dim": 6, "start": 0.3},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """start: what lambda starts at; when left out, 0.8 - 0.6 exp(-0.3 (l - 1)) in the l-th layer."""

        start: float | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("n_heads", "n_kv_heads"):
                if (getattr(self, name) or 0) % 2:
                    raise ValueError(f"{name}: {getattr(self, name)} heads do not pair up; an even number")
            if self.start is not None and not 0.0 <= self.start < 1.0:
                raise ValueError(f"start: {self.start} is no share of a map that leaves something; from 0 to below 1")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        by_depth = 0.8 - 0.6 * math.exp(-0.3 * (site.layer - 1))
        self.start = by_depth if config.start is None else config.start
        self.factors = nn.Parameter(torch.empty(2, 2, self.head_dim))  # of each map, for queries and for keys
        self.gain = nn.Parameter(torch.empty(2 * self.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start near lambda's first value, with plain norms."""
        nn.init.normal_(self.factors, std=0.1)
        nn.init.ones_(self.gain)

    def layouts(self) -> Layouts:
        """Publish what the paper's code does: vectors of lambda one by one, `subln` and `out_proj`."""
        vectors = Stack(tuple(Take(f"lambda_{x}{i}") for i in (1, 2) for x in "qk"))
        factors = Reshape(vectors, (4, self.head_dim), (2, 2, self.head_dim))
        own = {"factors": factors, "gain": Take("subln.weight"), "out.weight": Take("out_proj.weight")}
        return {"separate": own}

    def declared(self) -> Declared:
        """Keep every key, turned, and every value; across a memory, those of the memory."""
        length, grows = (MEMORY, "static") if self.site.cross else (PAST, "append")
        entry = Remembered(("batch", self.n_kv_heads, length, self.head_dim), grows)  # type: ignore[arg-type]
        return {"k": entry, "v": entry}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix in one call of torch's fused kernel for both maps; one token of a step by one map, their difference."""
        if context.weights is not None:
            return self.reference(q, k, v, context, state)
        if q.shape[1] != 1 or state is None or is_exporting():
            return self._whole(q, k, v, context, state, self.head_dim)
        k, v, state = _extended(k, v, context, state)
        bias = context.score(context.tokens, None, q, k.transpose(1, 2))
        mask = context.once("visible", lambda: context.visible(context.keys))
        return self._one(q, k, v, mask, bias), state

    def narrow(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute `forward` with keys as wide as they are: half of the scores' work, where a kernel allows it."""
        return self._whole(q, k, v, context, state, 0)

    def _whole(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None, zeros: int
    ) -> tuple[Tensor, Memories | None]:
        by_head, values, state = _extended(k, v, context, state)
        k, v = by_head.transpose(1, 2), values.transpose(1, 2)
        bias = context.score(context.tokens, None, q, k)
        mask = None if context.plain else context.once("visible", lambda: context.visible(context.keys))
        return self._fused(q, k, v, mask, bias, zeros), state

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute both maps, and take what one mixes from what the other does."""
        if self.site.cross:
            assert context.memory_tokens is not None
            keys, bias = context.memory_tokens, None
        else:
            by_head, values, state = _extended(k, v, context, state)
            k, v = by_head.transpose(1, 2), values.transpose(1, 2)
            keys, bias = context.keys, context.score(context.tokens, None, q, k)
        seen, wide = self.visible(context.tokens, keys), v.unflatten(2, (-1, 2)).flatten(3)
        mixed, weights = [], []
        for i in (0, 1):
            added = None if bias is None else bias[:, i::2]
            found = softmax_reference(q[:, :, i::2], k[:, :, i::2], wide, seen, added, self.scale)
            mixed.append(found[0])
            weights.append(found[1])
        if context.weights is not None:
            context.weights.append(torch.stack(weights, dim=2).flatten(1, 2))
        taken = at_least_fp32(mixed[0]) - self._share() * at_least_fp32(mixed[1])
        return self._normed(taken, v.dtype), state

    def prime(self, k: Tensor, v: Tensor, context: Context) -> Memories:
        """Keep the memory's keys and values."""
        return {"k": k.transpose(1, 2), "v": v.transpose(1, 2)}

    def recall(self, q: Tensor, primed: Memories, context: Context) -> Tensor:
        """Attend to the memory's keys."""
        assert context.memory_tokens is not None
        keys = context.memory_tokens
        k, v = primed["k"].transpose(1, 2), primed["v"].transpose(1, 2)
        if context.weights is not None:
            return self.reference(q, k, v, context)[0]
        mask = None if keys.valid is None else context.once("memory", lambda: self.visible(context.tokens, keys))
        return self._fused(q, k, v, mask, None, self.head_dim, causal=False)

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        return "torch SDPA, both maps in one call"

    def _fused(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, zeros: int,
        *, causal: bool | None = None,
    ) -> Tensor:  # fmt: skip
        # Torch's kernel wants keys as wide as values: zeros add nothing to any score.
        q, k = (F.pad(_by_map(x, 2), (0, zeros)) if zeros else _by_map(x, 2) for x in (q, k))
        wide = v.unflatten(2, (-1, 2)).flatten(3)
        bias = None if bias is None else _by_map(bias, 1)
        causal = (self.site.causal if causal is None else causal) and mask is None
        y = softmax_attention(q, k, torch.cat([wide, wide], 2), scale=self.scale, causal=causal, mask=mask, bias=bias)
        first, second = at_least_fp32(y).chunk(2, dim=2)
        return self._normed(first - self._share() * second, v.dtype)

    def _one(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        """Mix for one token q (B, 1, H, D) from k and v (B, K, S, D), of which nothing is copied."""
        pairs = self.n_kv_heads // 2
        q = q[:, 0].unflatten(1, (pairs, -1, 2)).transpose(2, 3)  # (B, J, 2, G, D)
        scores = at_least_fp32(q @ k.unflatten(1, (pairs, 2)).mT) * self.scale
        if bias is not None:
            scores = scores + bias[:, :, 0].unflatten(1, (pairs, -1, 2)).transpose(2, 3)
        seen = mask.unsqueeze(1).unsqueeze(1)  # (B or 1, 1, 1, 1, S)
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) * seen
        weights = weights[:, :, :1] - self._share() * weights[:, :, 1:]
        mixed = weights.to(v.dtype) @ v.unflatten(1, (pairs, 2))  # one half of the values after the other
        wide = at_least_fp32(mixed).transpose(2, 3).flatten(3).flatten(1, 2).unsqueeze(1)
        return self._normed(wide, v.dtype)

    def _share(self) -> Tensor:
        """Return lambda, how much of the second map is taken away, at least in fp32."""
        adding, taking = at_least_fp32(self.factors).prod(1).sum(-1).exp()
        share: Tensor = adding - taking + self.start
        return share

    def _normed(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (B, T, H, D) of what the difference mixed, y (B, T, H / 2, 2 D)."""
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS) * (at_least_fp32(self.gain) * (1 - self.start))
        heads: Tensor = y.to(dtype).unflatten(-1, (2, -1)).flatten(2, 3)
        return heads


def _by_map(x: Tensor, dim: int) -> Tensor:
    """Return x with the heads 0, 2, 4, ... of a dimension before the heads 1, 3, 5, ..."""
    ordered: Tensor = x.unflatten(dim, (-1, 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)
    return ordered


def _extended(k: Tensor, v: Tensor, context: Context, state: Memories | None) -> tuple[Tensor, Tensor, Memories | None]:
    """Put what is remembered before k and v, and remember it all, head by head: (B, K, S, D)."""
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if state is None:
        return k, v, None
    k, v = context.append(state["k"], k, 2), context.append(state["v"], v, 2)
    return k, v, {"k": k, "v": v}
