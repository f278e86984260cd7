"""Softmax attention within a window whose centre is predicted by each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.attention import Declaration, Mechanism, is_exporting
from ...core.component import Site
from ...core.context import Context
from ...core.heads import HeadsConfig
from ...core.linear import at_least_fp32, exactly
from ...core.state import PAST, Declared, Memories, Remembered
from ...core.tokens import Tokens, lengths

LEAST = 64
"""Queries that are at least taken together, next to each other by where they look."""


class LocalPAttention(Mechanism):
    """Let every head of a token say where to look, and see a window about it (Luong et al. 2015, local-p).

    A query of D entries, before positions turn it, predicts the centre p = S * sigmoid(v^T tanh(W q)), with W and v of
    its head; S is how many tokens it may see: those up to itself, or all of its text where both sides are seen. The
    window is of the tokens at a distance below `window` from the place nearest to p. The weights that the softmax gives
    them are multiplied by exp(-(s - p)^2 / (2 sigma^2)), s being the position of a key and sigma half the largest
    distance; they are not brought to a sum of 1 again. W and v learn through that factor alone.
    """

    turns: ClassVar[Literal["before", "itself"]] = "itself"
    chooses: ClassVar[str] = "the centre of a window, by each query"
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "rotate", "score", "compile"}),
        lacks={
            "cross": "its centre is a place in the order of a text, and a memory's tokens have none",
            "pairs": "its centre is a place among all columns before a token, in whatever order these may be seen",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_heads": 6, "window": 7},)

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """window: tokens seen on a side of the centre, itself included: those at a distance below it."""

        window: int

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.window < 2:
                raise ValueError(f"window: {self.window} leaves a centre no neighbour to learn from; at least 2")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.within = config.window - 1
        self.inner = nn.Parameter(torch.empty(self.n_heads, self.head_dim, self.head_dim))  # W
        self.outer = nn.Parameter(torch.empty(self.n_heads, self.head_dim))  # v
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with centres all over the text."""
        nn.init.normal_(self.inner, std=self.head_dim**-0.5)
        nn.init.normal_(self.outer)

    def declared(self) -> Declared:
        """Keep every key, turned, and every value: a later token may look anywhere."""
        entry = Remembered(("batch", PAST, self.n_kv_heads, self.head_dim), "append")
        return {"k": entry, "v": entry}

    def shown(self, q: Tokens, k: Tokens, chosen: Tensor) -> Tensor:
        """Return who sees whom where the windows of a token's heads are about `chosen` (B, T, H, 1)."""
        distance = k.pos.unsqueeze(1).unsqueeze(1) - chosen
        near: Tensor = (distance.abs() <= self.within).any(2)
        return self.visible(q, k) & near

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix for queries in the order of where they look, some at once, which meet one stretch of keys: linear in T.

        Few tokens, documents, biases on scores, steps and graphs take all scores.
        """
        plain = state is None and context.tokens.doc is None and not context.scored and context.weights is None
        plain = plain and not (torch.compiler.is_compiling() or is_exporting())
        if not plain or q.shape[1] <= 2 * self._together:  # a graph leaves the length open, and is not asked for it
            return self.reference(q, k, v, context, state)
        place, centre = self._centres(q, context)
        return self._in_order(context.rotate(q), context.rotate(k), v, context, place, centre), None

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute all scores, take the softmax of those in the window, and multiply by the distance's factor."""
        place, centre = self._centres(q, context)
        q, k = context.rotate(q), context.rotate(k)
        if state is not None:
            k, v = context.append(state["k"], k), context.append(state["v"], v)
            state = {"k": k, "v": v}
        keys = context.keys
        bias = context.score(context.tokens, keys, q, k)
        k, v = (t.repeat_interleave(self.n_heads // self.n_kv_heads, dim=2) for t in (k, v))
        seen = self.visible(context.tokens, keys).unsqueeze(1)
        place, centre = place.transpose(1, 2).unsqueeze(-1), centre.transpose(1, 2).unsqueeze(-1)
        heads = q.transpose(1, 2), k.transpose(1, 2)
        weights = self._weights(heads, keys.pos[:, None, None], seen, place, centre, bias)
        if context.weights is not None:
            context.weights.append(weights)
        return (weights @ at_least_fp32(v).transpose(1, 2)).transpose(1, 2).to(v.dtype), state

    def path(self, tokens: int) -> str:
        """Name the path, and what it chooses."""
        if tokens <= 2 * self._together:
            return "reference"
        return f"{self._together} queries at once, in the order of where they look; where scores are biased, reference"

    @property
    def _together(self) -> int:
        return max(LEAST, self.config.window)

    def _centres(self, q: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return where queries q (B, T, H, D) look, p and the place nearest to it, (B, T, H); p at least in fp32."""
        with exactly(q):
            hidden = torch.einsum("bthd,hde->bthe", at_least_fp32(q), at_least_fp32(self.inner)).tanh()
            logit = (hidden * at_least_fp32(self.outer)).sum(-1)
        tokens = context.tokens
        count = (tokens.pos + 1 if self.site.causal else lengths(tokens).clamp(min=1)).unsqueeze(-1)
        place = count * torch.sigmoid(logit)
        nearest = (place.detach() + 0.5).floor().long().clamp(min=0)
        nearest = torch.minimum(nearest, count - 1).unsqueeze(-1)
        centre = context.choose(nearest, lambda chosen: count.unsqueeze(-1) - (chosen - place.unsqueeze(-1)).abs())
        return place, centre.squeeze(-1)

    def _weights(
        self,
        pair: tuple[Tensor, Tensor],
        pos: Tensor,
        seen: Tensor,
        place: Tensor,
        centre: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return the weights (..., T, S) of queries (..., T, D) for keys (..., S, D) at pos (..., 1, S), where `seen`.

        place and centre are (..., T, 1).
        """
        q, k = pair
        scores = at_least_fp32(q) @ at_least_fp32(k).mT * self.scale
        if bias is not None:
            scores = scores + bias
        seen = seen & ((pos - centre).abs() <= self.within)
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
        return weights * seen * torch.exp((pos - place).square() * (-2 / self.within**2))

    def _widths(self, first: Tensor, last: Tensor, length: int) -> list[int]:
        """Return how many keys are met by the queries taken together, of which they see from `first` to `last`.

        first, last (B, N, H): columns. On the meta device, where none are known, those of centres all over the text.
        """
        if first.is_meta:
            return [min(self._together + 2 * self.within, length)] * first.shape[1]
        return (last - first + 1).amax((0, 2)).clamp(max=length).tolist() if len(first) else [0] * first.shape[1]

    def _in_order(self, q: Tensor, k: Tensor, v: Tensor, context: Context, place: Tensor, centre: Tensor) -> Tensor:
        """Mix for plain or padded rows, whose columns are positions."""
        length, most = q.shape[1], self._together
        order = centre.argsort(1)  # (B, T, H)
        place, centre = place.gather(1, order), centre.gather(1, order)
        own = order.transpose(1, 2).unsqueeze(-1)  # the columns of queries, (B, H, T, 1)
        k, v = (t.repeat_interleave(self.n_heads // self.n_kv_heads, dim=2).transpose(1, 2) for t in (k, v))
        q = q.transpose(1, 2).gather(2, own.expand(-1, -1, -1, q.shape[-1]))
        starts = torch.arange(0, length, most, device=q.device)
        ends = (starts + most - 1).clamp(max=length - 1)
        first, last = centre[:, starts] - self.within, centre[:, ends] + self.within
        widths = self._widths(first, last, length)
        real = context.tokens.valid
        found = []
        for i, (start, width) in enumerate(zip(range(0, length, most), widths, strict=True)):
            part = slice(start, start + most)
            begin = torch.minimum(first[:, i], torch.tensor(length - width, device=q.device)).clamp(min=0)
            columns = begin.unsqueeze(-1) + torch.arange(width, device=q.device)  # (B, H, S)
            index = columns.unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])
            pos = columns.unsqueeze(2)
            seen = pos <= own[:, :, part] if self.site.causal else pos >= 0
            if real is not None:
                seen = seen & real.unsqueeze(1).expand(-1, columns.shape[1], -1).gather(2, columns).unsqueeze(2)
            at = (t[:, part].transpose(1, 2).unsqueeze(-1) for t in (place, centre))
            weights = self._weights((q[:, :, part], k.gather(2, index)), pos, seen, *at)
            found.append(weights @ at_least_fp32(v.gather(2, index)))
        back = order.argsort(1).transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, v.shape[-1])
        return torch.cat(found, dim=2).gather(2, back).transpose(1, 2).to(v.dtype)
