"""Softmax attention over all tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...core.attention import Declaration, Mechanism, is_exporting
from ...core.context import Context
from ...core.grouped import grouped_query_attention
from ...core.heads import HeadsConfig
from ...core.projected import Projected
from ...core.softmax import by_head, softmax_in, softmax_reference
from ...core.state import MEMORY, PAST, Declared, Memories, Remembered


class FullAttention(Mechanism):
    """Let every token see every token that the model's rule allows (Vaswani et al. 2017)."""

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "cross", "documents", "rotate", "score", "compile", "pairs"}), time=2.0
    )

    lowers: ClassVar[Mapping[str, str]] = {"ort": "grouped"}
    packs: ClassVar[frozenset[str]] = frozenset({"ort"})

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """soft_cap: how far scaled scores may be from 0; they near it as a tanh does (Gemma Team 2024)."""

        soft_cap: float | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.soft_cap is not None and self.soft_cap <= 0.0:
                raise ValueError(f"soft_cap: {self.soft_cap} leaves scores no room; above 0")

    def declared(self) -> Declared:
        """Keep every key, turned, and every value; across a memory, those of the memory."""
        length, grows = (MEMORY, "static") if self.site.cross else (PAST, "append")
        entry = Remembered(("batch", self.n_kv_heads, length, self.head_dim), grows)  # type: ignore[arg-type]
        return {"k": entry, "v": entry}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix through torch's fused kernel: its causal form for plain tokens, else with a mask that layers share."""
        if context.weights is not None:
            return self.reference(q, k, v, context, state)
        k, v, state = _extended(k, v, context, state)
        return softmax_in(context, q, k, v, scale=self.scale, cap=self.config.soft_cap), state

    def declines(self, target: str) -> str:
        """Keep to `forward` where GroupQueryAttention does not fit."""
        if self.site.cross or not self.site.causal:
            return "GroupQueryAttention is for tokens that see those before them"
        if self.head_dim % 8:
            return f"GroupQueryAttention takes no head_dim of {self.head_dim}, which is no multiple of 8"
        return ""

    def grouped(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Leave it all to ONNX Runtime's GroupQueryAttention: it costs what slots are filled, not what there are."""
        if state is None or context.slots is None or not is_exporting():
            return FullAttention.forward(self, q, k, v, context, state)
        projected = Projected((q, k, v), (q.shape[2], k.shape[2], v.shape[2]), turning=False)
        return FullAttention.packed(self, projected, context, state)

    def packed(self, projected: Projected, context: Context, state: Memories) -> tuple[Tensor, Memories]:
        """Leave the turning of queries and keys to it too, where a table says how."""
        return grouped_query_attention(context, projected, state, scale=self.scale, cap=self.config.soft_cap)

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute all scores, mask them, and take the softmax."""
        if self.site.cross:
            assert context.memory_tokens is not None
            keys, bias = context.memory_tokens, None
        else:
            by_head, values, state = _extended(k, v, context, state)
            k, v = by_head.transpose(1, 2), values.transpose(1, 2)
            keys, bias = context.keys, context.score(context.tokens, context.keys, q, k)
        y, weights = softmax_reference(
            q, k, v, self.visible(context.tokens, keys), bias, self.scale, self.config.soft_cap
        )
        if context.weights is not None:
            context.weights.append(weights)
        return y, state

    def prime(self, k: Tensor, v: Tensor, context: Context) -> Memories:
        """Keep the memory's keys and values."""
        return {"k": k.transpose(1, 2), "v": v.transpose(1, 2)}

    def recall(self, q: Tensor, primed: Memories, context: Context) -> Tensor:
        """Attend to the memory's keys."""
        assert context.memory_tokens is not None
        k, v, keys = primed["k"], primed["v"], context.memory_tokens
        if context.weights is not None:
            return self.reference(q, k.transpose(1, 2), v.transpose(1, 2), context)[0]
        mask = None if keys.valid is None else context.once("memory", lambda: self.visible(context.tokens, keys))
        return by_head(q, k, v, scale=self.scale, mask=mask, cap=self.config.soft_cap)

    def growth(self) -> tuple[float, float]:
        """Return the exponents of time and memory: no fused kernel caps scores, so that all are formed."""
        return super().growth() if self.config.soft_cap is None else (2.0, 2.0)

    def path(self, tokens: int) -> str:
        """Name torch's fused kernel."""
        if self.config.soft_cap is not None:
            return "reference: no kernel caps scores"
        return "torch SDPA, causal" if self.site.causal else "torch SDPA"


def _extended(k: Tensor, v: Tensor, context: Context, state: Memories | None) -> tuple[Tensor, Tensor, Memories | None]:
    """Put what is remembered before k and v, and remember it all, head by head: (B, K, S, D), as kernels take it."""
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if state is None:
        return k, v, None
    k, v = context.append(state["k"], k, 2), context.append(state["v"], v, 2)
    return k, v, {"k": k, "v": v}
