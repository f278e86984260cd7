"""Softmax attention from which a second one, of the same values, is taken away."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.core import (
    Context,
    Declaration,
    HeadsConfig,
    Mechanism,
    Remembered,
    Site,
    moves,
    softmax_attention,
    softmax_reference,
)

State = dict[str, Tensor] | None
EPS = 1e-5


class PairsAttention(Mechanism):
    """Take the softmax map of every second head away from that of the head before it (Ye et al. 2024, equation 1).

    Heads 2i and 2i + 1 are one differential head: each has its own queries and keys, and their values, side by side,
    are the 2 D wide values of both maps. With G query pairs to a key pair, query pair i reads key pair i // G.
    """

    lowers: ClassVar = {"onnx": "narrow"}
    declares = Declaration(
        can=frozenset({"causal", "two_sided", "cross", "documents", "rotate", "score", "compile"}), time=2.0
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """depth: the layer's number, from 1, that lambda starts by; 0.8, its limit, when left out."""

        depth: int | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("n_heads", "n_kv_heads"):
                if (getattr(self, name) or 0) % 2:
                    raise ValueError(f"{name}: {getattr(self, name)} heads do not pair up; an even number")
            if self.depth is not None and self.depth < 1:
                raise ValueError(f"depth: {self.depth} is before the first layer, which is 1")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.start = 0.8 if config.depth is None else 0.8 - 0.6 * math.exp(-0.3 * (config.depth - 1))
        self.factors = nn.Parameter(torch.empty(2, 2, self.head_dim))  # of each map, for queries and for keys
        self.gain = nn.Parameter(torch.empty(2 * self.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start near lambda's first value, with plain norms."""
        nn.init.normal_(self.factors, std=0.1)
        nn.init.ones_(self.gain)

    def layouts(self) -> moves.Layouts:
        """Publish what the paper's code does, of whose projections only the last has another name than is usual."""
        vectors = moves.Stack(tuple(moves.Take(f"lambda_{x}{i}") for i in (1, 2) for x in "qk"))
        factors = moves.Reshape(vectors, (4, self.head_dim), (2, 2, self.head_dim))
        gain, out = moves.Take("subln.weight"), moves.Take("out_proj.weight")
        return {"separate": {"factors": factors, "gain": gain, "out.weight": out}}

    def declared(self) -> dict[str, Remembered]:
        """Keep every key, turned, and every value; across a memory, those of the memory."""
        heads = (self.n_kv_heads, self.head_dim)
        across, own = Remembered(("batch", "memory", *heads), "static"), Remembered(("batch", "past", *heads), "append")
        return dict.fromkeys(("k", "v"), across if self.site.cross else own)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        """Mix q (B, T, H, D) with k, v (B, T, K, D) in one call of torch's fused kernel for both maps."""
        if context.weights is not None:
            return self.reference(q, k, v, context, state)
        return self._mixed(q, k, v, context, state, self.head_dim)

    def narrow(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        """Compute `forward` for a graph, whose Attention takes keys narrower than values: half of the scores' work."""
        return self._mixed(q, k, v, context, state, 0)

    def _mixed(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: State, zeros: int
    ) -> tuple[Tensor, State]:
        k, v, state = _extended(k, v, context, state)
        bias = context.score(context.tokens, None, q, k)
        mask = None if context.plain else context.once("visible", lambda: context.visible(context.keys))
        return self._fused(q, k, v, mask, bias, zeros), state

    def reference(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        """Compute both maps of q (B, T, H, D) and k, v (B, S, K, D), and take one from the other."""
        if self.site.cross:
            assert context.memory_tokens is not None
            keys, bias = context.memory_tokens, None
        else:
            k, v, state = _extended(k, v, context, state)
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
        return self._differ(*mixed), state

    def prime(self, k: Tensor, v: Tensor, context: Context) -> dict[str, Tensor]:
        """Keep a memory's keys and values (B, M, K, D)."""
        return {"k": k, "v": v}

    def recall(self, q: Tensor, primed: dict[str, Tensor], context: Context) -> Tensor:
        """Attend from q (B, T, H, D) to the memory's keys."""
        assert context.memory_tokens is not None
        if context.weights is not None:
            return self.reference(q, primed["k"], primed["v"], context)[0]
        seen = self.visible(context.tokens, context.memory_tokens)
        return self._fused(q, primed["k"], primed["v"], seen, None, self.head_dim)

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        return "torch SDPA, both maps in one call"

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, zeros: int) -> Tensor:
        # Torch's kernel wants keys as wide as values: zeros add nothing to any score.
        q, k = (F.pad(_by_map(x, 2), (0, zeros)) if zeros else _by_map(x, 2) for x in (q, k))
        wide = v.unflatten(2, (-1, 2)).flatten(3)
        bias = None if bias is None else _by_map(bias, 1)
        causal = mask is None and self.site.causal
        y = softmax_attention(q, k, torch.cat([wide, wide], 2), scale=self.scale, causal=causal, mask=mask, bias=bias)
        return self._differ(*y.chunk(2, dim=2))

    def _differ(self, first: Tensor, second: Tensor) -> Tensor:
        """Return (B, T, H, D) from what both maps mixed, each (B, T, H / 2, 2 D): the norm of their difference."""
        wide = torch.promote_types(first.dtype, torch.float32)
        adding, taking = self.factors.to(wide).prod(1).sum(-1).exp()
        y = first.to(wide) - (adding - taking + self.start) * second.to(wide)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS) * (self.gain * (1 - self.start))
        return torch.unflatten(y.to(first.dtype), -1, (2, -1)).flatten(2, 3)


def _by_map(x: Tensor, dim: int) -> Tensor:
    """Return x with the heads 0, 2, 4, ... of a dimension before the heads 1, 3, 5, ..."""
    return torch.unflatten(x, dim, (-1, 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def _extended(k: Tensor, v: Tensor, context: Context, state: State) -> tuple[Tensor, Tensor, State]:
    if state is None:
        return k, v, None
    k, v = context.append(state["k"], k), context.append(state["v"], v)
    return k, v, {"k": k, "v": v}
