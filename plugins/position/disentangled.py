"""Scores between contents and distances, through the projections of the attention that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.component import Part, Site
from ...core.linear import Linear
from ...core.position import Position, Served, in_each_row
from ...core.tokens import Tokens


class DisentangledPosition(Position):
    """Score a token's content against the distance to another, and the other's content against it (He et al. 2021).

    Every distance has a vector, which all layers share and each turns to keys and queries with its own projections.
    Near distances have a vector each; far ones may share vectors in buckets that widen logarithmically.
    """

    hooks: ClassVar[frozenset[str]] = frozenset({"score"})
    relative: ClassVar[bool] = True
    projects: ClassVar[bool] = True
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"buckets": 8, "max_distance": 90},
        {"max_distance": 20, "terms": ("c2p",)},
        {"buckets": 5, "terms": ("p2c",), "own": True},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """buckets: of distances to each side, the nearer half of which holds one each; none when left out.

        max_distance: the last one that is told apart (max_seq_len when left out). terms: what is scored: `c2p`, the
        query's content against the distance as a key; `p2c`, the distance as a query against the key's content. norm:
        of the vectors. own: whether each layer turns them with projections of their own, in place of its content's.
        """

        buckets: int | None = None
        max_distance: int | None = None
        terms: tuple[Literal["c2p", "p2c"], ...] = ("c2p", "p2c")
        norm: Annotated[Part | None, "norm"] = None
        own: bool = False

        def __post_init__(self) -> None:
            if self.buckets is not None and self.buckets < 4:
                raise ValueError(f"buckets: {self.buckets} can't be split in near and far; at least 4")
            least = 1 if self.buckets is None else self.buckets // 2 + 2
            if self.max_distance is not None and self.max_distance < least:
                raise ValueError(f"max_distance: {self.max_distance} leaves no far distances; at least {least}")
            if not self.terms or len(set(self.terms)) < len(self.terms):
                raise ValueError(f"terms: {list(self.terms)} should be c2p, p2c, or both")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.most_far = config.max_distance or site.max_seq_len
        self.span = config.buckets or self.most_far
        self.weight = nn.Parameter(torch.empty(2 * self.span, site.d_model))
        self.norm = None if config.norm is None else config.norm.build(site)
        self.keys = self._own() if config.own and "c2p" in config.terms else None
        self.queries = self._own() if config.own and "p2c" in config.terms else None
        # How far from the middle of the table a distance's vector stands: whole numbers, which no graph may round.
        self.register_buffer("places", torch.empty(site.max_seq_len, dtype=torch.int64), persistent=False)
        self.reset_parameters()

    def _own(self) -> nn.ModuleList:
        """Return a projection of vectors (..., C) to heads (..., H * D) for each layer that is served."""
        width = self.site.n_heads * self.site.head_dim
        return nn.ModuleList(Linear(self.site.d_model, width, bias=True) for _ in range(self.site.n_layers))

    def reset_parameters(self) -> None:
        """Start with small scores."""
        nn.init.normal_(self.weight, std=0.1)
        places: Any = self.places
        places.copy_(self._places().to(places.device))

    def _places(self) -> Tensor:
        """Return how far from the middle of the table each distance's vector stands, int64 (max_seq_len,)."""
        distance = torch.arange(self.site.max_seq_len, device="cpu")
        near = (self.config.buckets or 0) // 2
        if self.config.buckets is None or self.most_far < near + 2:  # no two of them share a vector
            return distance
        steps = torch.log(distance.clamp(min=near) / near)
        ratio = steps / torch.log(torch.tensor((self.most_far - 1) / near, device="cpu"))
        return torch.where(distance <= near, distance, (torch.ceil(ratio * (near - 1)) + near).long())

    def score_with(self, served: Served, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
        """Return the scores of contents against distances, scaled as those of contents are, (B, H, T, S)."""
        table = self.weight if self.norm is None else self.norm(self.weight)
        heads, layer = q.shape[2], served.site.layer - self.site.layer
        rows = self._rows(q_tokens, k_tokens)
        rows = in_each_row(rows, q.shape[0]).unsqueeze(1).expand(q.shape[0], heads, -1, -1)
        found: list[Tensor] = []
        if "c2p" in self.config.terms:
            keys = served.keys(table) if self.keys is None else self._turned(self.keys[layer], table)
            found.append(torch.einsum("bthd,phd->bhtp", q, _spread(keys, heads)).gather(-1, rows))
        if "p2c" in self.config.terms:
            queries = served.queries(table) if self.queries is None else self._turned(self.queries[layer], table)
            scores = torch.einsum("bshd,phd->bhsp", _spread(k, heads), queries)
            found.append(scores.gather(-1, rows.transpose(-1, -2)).transpose(-1, -2))
        return sum(found[1:], found[0]) * served.scale

    def _rows(self, q_tokens: Tokens, k_tokens: Tokens) -> Tensor:
        """Return which vector stands for each pair of tokens, (B or 1, T, S) int64."""
        if q_tokens is not k_tokens:
            return self._pairs(q_tokens, k_tokens)
        return q_tokens.once(self, lambda: self._pairs(q_tokens, k_tokens))

    def _pairs(self, q_tokens: Tokens, k_tokens: Tokens) -> Tensor:
        places: Any = self.places
        offset = q_tokens.pos.unsqueeze(2) - k_tokens.pos.unsqueeze(1)
        # Beside a row's tokens stands padding at any distance.
        place = places[offset.abs().clamp(max=len(places) - 1)]
        return (torch.where(offset < 0, -place, place) + self.span).clamp(0, 2 * self.span - 1)

    def _turned(self, own: nn.Module, table: Tensor) -> Tensor:
        turned: Tensor = own(table).unflatten(-1, (self.site.n_heads, self.site.head_dim))
        return turned


def _spread(x: Tensor, heads: int) -> Tensor:
    """Return x (..., K, D) with each key head for all query heads of its group, (..., H, D)."""
    return x if x.shape[-2] == heads else x.repeat_interleave(heads // x.shape[-2], dim=-2)
