"""Softmax attention whose keys and values are made of one narrow vector a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.attention import Declaration, Headed, Mixer, is_exporting
from ...core.component import Part, Site
from ...core.context import Context
from ...core.linear import Linear
from ...core.moves import Layouts, Move, Take
from ...core.scaling import Stretch
from ...core.softmax import softmax_in, softmax_reference
from ...core.state import PAST, Declared, Memories, Remembered


class LatentAttention(Mixer):
    """Remember one compressed vector a token, of which every head makes its keys and values (DeepSeek-AI 2024).

    A query and a key have a part that stays and a part that positions turn; the turned part of the keys is one for all
    heads, and is remembered beside the compressed vector. A few new tokens read what is remembered without expanding
    it: the maps that would expand it are applied to their queries, and to what they read.
    """

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "rotate", "compile", "pairs"}),
        lacks={
            "cross": "the key that all its heads share tells how far apart two tokens of one sequence stand, and a "
            "memory's tokens stand in another",
            "score": "a step reads what is kept as it is, compressed, and no head's keys are formed that a position "
            "could be given to score",
        },
        time=2.0,
    )
    trials = (
        {"n_heads": 6},
        {"n_heads": 3, "head_dim": 6, "rope_dim": 4, "v_dim": 5, "kv_rank": 9, "q_rank": 7, "bias": True,
         "stretch": Stretch(factor=5.0, mscale=0.7)},
        {"n_heads": 2, "head_dim": 4, "rope_dim": 2, "v_dim": 9, "kv_rank": 3, "scale": 0.3},
    )  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Config(Headed):
        """n_heads: how many there are.

        head_dim: width of the part of a query and a key that stays (d_model / n_heads). rope_dim: width of the part
        that positions turn (half of head_dim, made even). v_dim: width of a value (head_dim). kv_rank: width of the
        compressed vector (4 * head_dim). q_rank: width that queries are compressed to on their way; they are not when
        left out. bias: on the maps to what is compressed, and on the output. scale: of the scores
        ((head_dim + rope_dim)^-1/2). stretch: what scales scores besides, for longer texts. norm: on what is
        compressed, the turned key aside.
        """

        n_heads: int
        head_dim: int | None = None
        rope_dim: int | None = None
        v_dim: int | None = None
        kv_rank: int | None = None
        q_rank: int | None = None
        bias: bool = False
        scale: float | None = None
        stretch: Stretch | None = None
        norm: Annotated[Part | None, "norm"] = None

        def __post_init__(self) -> None:
            if self.n_heads < 1:
                raise ValueError(f"n_heads: {self.n_heads} is not a number of heads; at least 1")
            for name in ("head_dim", "rope_dim", "v_dim", "kv_rank", "q_rank"):
                width = getattr(self, name)
                if width is not None and width < 1:
                    raise ValueError(f"{name}: {width} is not a width; at least 1")

        def heads(self, d_model: int) -> tuple[int, int]:
            """Return the number of heads, and the width of the turned part."""
            return self.n_heads, self.rope_dim or max(self.stays(d_model) // 4 * 2, 2)

        def stays(self, d_model: int) -> int:
            """Return the width of the part of a query and a key that stays."""
            if self.head_dim is None and d_model % self.n_heads:
                raise ValueError(
                    f"n_heads: {self.n_heads} heads do not divide d_model {d_model}; set head_dim, or n_heads"
                )
            return self.head_dim or d_model // self.n_heads

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.n_heads, self.turned = config.heads(site.d_model)
        self.stays = config.stays(site.d_model)
        self.v_dim, self.rank = config.v_dim or self.stays, config.kv_rank or 4 * self.stays
        width = self.stays + self.turned
        self.scale = width**-0.5 if config.scale is None else config.scale
        self.scale *= 1.0 if config.stretch is None else config.stretch.size**2
        q_rank, d_model = config.q_rank, site.d_model
        self.q_down = None if q_rank is None else Linear(d_model, q_rank, bias=config.bias)
        self.q_norm = config.norm.build(site.but(d_model=q_rank)) if config.norm and q_rank is not None else None
        self.q_up = Linear(q_rank or d_model, self.n_heads * width)
        self.kv_down = Linear(d_model, self.rank + self.turned, bias=config.bias)
        self.kv_norm = config.norm.build(site.but(d_model=self.rank)) if config.norm else None
        self.kv_up = Linear(self.rank, self.n_heads * (self.stays + self.v_dim))
        self.out = Linear(self.n_heads * self.v_dim, d_model, bias=config.bias, gain=(2 * site.n_layers) ** -0.5)

    def layouts(self) -> Layouts:
        """Publish q_a_proj and q_b_proj, or q_proj alone; kv_a_proj_with_mqa, kv_b_proj, o_proj."""
        names = {"kv_down": "kv_a_proj_with_mqa", "kv_up": "kv_b_proj", "out": "o_proj"}
        names |= {"q_up": "q_proj"} if self.q_down is None else {"q_down": "q_a_proj", "q_up": "q_b_proj"}
        own = self.state_dict()
        moves: dict[str, Move] = {
            f"{ours}.{kind}": Take(f"{theirs}.{kind}")
            for ours, theirs in names.items()
            for kind in ("weight", "bias")
            if f"{ours}.{kind}" in own
        }
        return {"separate": moves}

    def declared(self) -> Declared:
        """Keep of each token its compressed vector and the key that all heads share, turned: side by side."""
        return {"latent": Remembered(("batch", PAST, self.rank + self.turned), "append")}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Mix through torch's fused kernel; a few tokens with a state, on what is compressed."""
        if context.weights is not None:
            return self.reference(x, context, state)
        q, kept, state = self._projected(x, context, state)
        absorbed = state is not None and (is_exporting() or self._absorbs(x.shape[1]))
        mixed = self._absorbed(q, kept, context) if absorbed else self._expanded(q, kept, context)
        return self.out(mixed.flatten(-2)), state

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Expand all keys and values, compute all scores, mask them, and take the softmax."""
        q, kept, state = self._projected(x, context, state)
        k, v = self._keys_values(kept)
        mixed, weights = softmax_reference(q, k, v, self.visible(context.tokens, context.keys), None, self.scale)
        if context.weights is not None:
            context.weights.append(weights)
        return self.out(mixed.flatten(-2)), state

    def path(self, tokens: int) -> str:
        """Name torch's fused kernel."""
        return "torch SDPA, causal; absorbed in steps" if self.site.causal else "torch SDPA"

    def _projected(self, x: Tensor, context: Context, state: Memories | None) -> tuple[Tensor, Tensor, Memories | None]:
        """Return queries (B, T, H, stays + turned), and what is kept of past and new tokens (B, S, rank + turned)."""
        narrow = x if self.q_down is None else self.q_down(x)
        narrow = narrow if self.q_norm is None else self.q_norm(narrow)
        q, q_turning = self.q_up(narrow).unflatten(-1, (self.n_heads, -1)).split((self.stays, self.turned), -1)
        latent, k_turning = self.kv_down(x).split((self.rank, self.turned), -1)
        latent = latent if self.kv_norm is None else self.kv_norm(latent)
        # Queries and the one key stand side by side: one rotation turns them all.
        turned = context.rotate(torch.cat([q_turning, k_turning.unsqueeze(2)], dim=2))
        q_turned, k_turned = turned.split((self.n_heads, 1), 2)
        kept = torch.cat([latent, k_turned.squeeze(2)], dim=-1)
        if context.asked:
            kept = kept[:, : -context.asked]
        if context.own.valid is not None:
            kept = kept.masked_fill(~context.own.valid.unsqueeze(-1), 0.0)
        if state is not None:
            kept = context.append(state["latent"], kept)
            state = {"latent": kept}
        return torch.cat([q, q_turned], dim=-1), kept, state

    def _keys_values(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return every head's keys (B, S, H, stays + turned) and values (B, S, H, v_dim)."""
        latent, turned = kept.split((self.rank, self.turned), -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.n_heads, -1)).split((self.stays, self.v_dim), -1)
        return torch.cat([k, turned.unsqueeze(2).expand(-1, -1, self.n_heads, -1)], dim=-1), v

    def _expanded(self, q: Tensor, kept: Tensor, context: Context) -> Tensor:
        """Mix values (B, T, H, v_dim) of expanded keys and values."""
        k, v = self._keys_values(kept)
        # The kernels that form no scores take one width: entries of 0 change no product.
        spare = q.shape[-1] - self.v_dim
        if spare > 0:
            v = F.pad(v, (0, spare))
        elif spare < 0:
            q, k = F.pad(q, (0, -spare)), F.pad(k, (0, -spare))
        return softmax_in(context.at(None), q, k.transpose(1, 2), v.transpose(1, 2), scale=self.scale)[
            ..., : self.v_dim
        ]

    def _absorbed(self, q: Tensor, kept: Tensor, context: Context) -> Tensor:
        """Mix values (B, T, H, v_dim) as if the compressed vector were the one key and the one value of all heads."""
        up = self.kv_up.weight.unflatten(0, (self.n_heads, -1))  # (H, stays + v_dim, rank)
        to_k, to_v = up.split((self.stays, self.v_dim), 1)
        q, q_turned = q.split((self.stays, self.turned), -1)
        q = torch.cat([torch.einsum("bthd,hdr->bthr", q, to_k), q_turned], dim=-1)
        shared = kept.unsqueeze(2)
        shared = shared.transpose(1, 2)
        mixed = softmax_in(context.at(None), q, shared, shared, scale=self.scale)[..., : self.rank]
        return torch.einsum("bthr,hvr->bthv", mixed, to_v)

    def _absorbs(self, tokens: int) -> bool:
        """Say whether so many new tokens cost less on what is compressed, beside a long past.

        Expanding costs rank * (stays + v_dim) products a head and past token; not to costs wider scores and sums for
        each new token, 2 * rank in place of stays + v_dim.
        """
        narrow = self.stays + self.v_dim
        return tokens * (2 * self.rank - narrow) < self.rank * narrow
