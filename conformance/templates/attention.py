"""Softmax attention that may also look at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from transom.core import Context, Declaration, HeadsConfig, Mechanism, Remembered, softmax_attention


class NewAttention(Mechanism):
    """Add 1 to the softmax's denominator, so that a token need not attend to any (Miller 2023, "softmax1")."""

    # Each ability stands in `can`, in `ignores` (harmless, of no effect) or in `lacks`, with a clause that says why.
    # `time` and `memory` are the exponents of its cost against length. The suite proves all of it.
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "rotate", "score", "compile"}),
        lacks={"cross": "it keeps no keys of a memory"},
        time=2.0,
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """Take the options of all multi-head attentions (n_heads, n_kv_heads, head_dim, ...), and none besides."""

    def declared(self) -> dict[str, Remembered]:
        """Keep every key and value: decoding, export and the memory estimate follow from this alone."""
        entry = Remembered(("batch", "past", self.n_kv_heads, self.head_dim), "append")
        return {"k": entry, "v": entry}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Mix through torch's fused kernel: q (B, T, H, D) and k, v (B, T, K, D) give (B, T, H, D).

        A token of zeros stands before all others: its key has the score 0, which is the 1 of the denominator, and its
        value adds nothing.
        """
        if context.weights is not None:  # someone asks for the weights, which the kernel never forms
            return self.reference(q, k, v, context, state)
        k, v, state = _extended(k, v, context, state)
        bias = context.score(context.tokens, None, q, k)
        bias = None if bias is None else F.pad(bias, (1, 0, 1, 0))
        # Without padding, documents and a past, who sees whom is a triangle or everything, and needs no mask.
        mask = None if context.plain else F.pad(context.visible(context.keys), (1, 0, 1, 0), value=True)
        q, k, v = (F.pad(x, (0, 0, 0, 0, 1, 0)) for x in (q, k, v))
        triangle = context.plain and context.causal
        return softmax_attention(q, k, v, scale=self.scale, causal=triangle, mask=mask, bias=bias)[:, 1:], state

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Compute the same from the definition, in fp32 at least; shapes as in `forward`."""
        k, v, state = _extended(k, v, context, state)
        bias = context.score(context.tokens, None, q, k)
        narrow, wide = v.dtype, torch.promote_types(q.dtype, torch.float32)
        q, k, v = q.to(wide), *(x.repeat_interleave(self.n_heads // self.n_kv_heads, dim=2).to(wide) for x in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) * self.scale
        scores = scores if bias is None else scores + bias
        scores = scores.masked_fill(~context.visible(context.keys).unsqueeze(1), float("-inf"))
        weights = torch.softmax(F.pad(scores, (1, 0)), dim=-1)[..., 1:]
        if context.weights is not None:
            context.weights.append(weights)
        return torch.einsum("bhts,bshd->bthd", weights, v).to(narrow), state


def _extended(
    k: Tensor, v: Tensor, context: Context, state: dict[str, Tensor] | None
) -> tuple[Tensor, Tensor, dict[str, Tensor] | None]:
    """Put what is remembered before k and v (B, T, K, D), and remember it all."""
    if state is None:
        return k, v, None
    k, v = context.append(state["k"], k), context.append(state["v"], v)
    return k, v, {"k": k, "v": v}
