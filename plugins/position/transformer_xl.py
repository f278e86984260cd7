"""Scores by content, distance and segment, each with a learned query of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.component import Site
from ...core.inputs import Input
from ...core.linear import Linear
from ...core.moves import Layouts, Move, Reshape, Take, Transpose
from ...core.position import Position, in_each_row
from ...core.state import accumulation_dtype
from ...core.tokens import Tokens


class TransformerXlPosition(Position):
    """Add u . k + (q + v) . W r(i - j), and (q + s) . e by whether two tokens are of one segment, to q . k.

    r(n) holds the sines and cosines of distance n; W maps it to the heads; u, v and s are the same for all queries, so
    that keys count by what they are, how far they are and where they belong, whatever is asked (Dai et al. 2019; Yang
    et al. 2019). All is scaled as the scores are. What it scores depends on distances alone: texts may be longer than
    those that it was trained on, and be read segment by segment.
    """

    hooks: ClassVar[frozenset[str]] = frozenset({"score"})
    relative: ClassVar[bool] = True
    by_content: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """segments: how many there are, by `token_type_ids`: whether two tokens are of one segment counts; 0 for none.

        clamp: the farthest distance that is told from nearer ones, tokens; None for all. theta: the longest wavelength
        over 2 pi, tokens. scale: of what is added (head_dim^-1/2), where the attention has one of its own.
        """

        segments: int = 0
        clamp: int | None = None
        theta: float = 10000.0
        scale: float | None = None

        def __post_init__(self) -> None:
            if self.segments < 0:
                raise ValueError(f"segments: {self.segments} is not a number of segments; at least 0")
            if self.clamp is not None and self.clamp < 1:
                raise ValueError(f"clamp: {self.clamp} tells no distances apart; at least 1")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if site.d_model % 2:
            raise ValueError(f"d_model: {site.d_model} is odd; sines and cosines come in pairs")
        heads = (site.n_heads, site.head_dim)
        self.scale = site.head_dim**-0.5 if config.scale is None else config.scale
        self.project = Linear(site.d_model, site.n_heads * site.head_dim)
        self.content = nn.Parameter(torch.empty(heads))
        self.distance = nn.Parameter(torch.empty(heads))
        self.segment = nn.Parameter(torch.empty(heads)) if config.segments else None
        self.kinds = nn.Parameter(torch.empty(2, *heads)) if config.segments else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with small queries of its own, and segments that count little."""
        self.project.reset_parameters()
        for weight in (self.content, self.distance, self.segment, self.kinds):
            if weight is not None:
                nn.init.normal_(weight, std=0.1)

    def reads(self) -> Mapping[str, Input]:
        """Read `token_type_ids` (B, T), where segments count: all of one when left out."""
        if self.segment is None:
            return {}
        return {"token_type_ids": Input(("batch", "sequence"), "int64", high=self.config.segments, optional=True)}

    def layouts(self) -> Layouts:
        """Publish `plain`, its own names; or `by_head`: the map r as (C, H, D)."""
        width, heads = self.site.d_model, (self.site.n_heads, self.site.head_dim)
        turned: Move = Transpose(Reshape(Take("r"), (width, *heads), (width, heads[0] * heads[1])))
        return {"plain": {}, "by_head": {"project.weight": turned}}

    def score(self, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
        """Return what is added, (B, H, T, S): products with the vectors of all distances that there are, picked."""
        rows = q.shape[0]
        apart, least, most = self._distances(q_tokens, k_tokens)
        vectors = self._vectors(torch.arange(least, most + 1, device=q.device), q.dtype)
        by_distance = torch.einsum("bthd,nhd->bhtn", q + self.distance, vectors)
        place = in_each_row((apart.clamp(least, most) - least).unsqueeze(1), rows)
        added = by_distance.gather(-1, place.expand(rows, self.site.n_heads, -1, -1))
        keys = k.repeat_interleave(self.site.n_heads // k.shape[2], dim=2)
        added = added + torch.einsum("hd,bshd->bhs", self.content, keys).unsqueeze(2)
        if self.segment is not None:
            same, other = torch.einsum("bthd,nhd->nbht", q + self.segment, self.kinds).unsqueeze(-1)
            differ = self._differ(q_tokens, k_tokens)
            added = added + (same if differ is None else torch.where(in_each_row(differ, rows), other, same))
        return added * self.scale

    def _distances(self, q_tokens: Tokens, k_tokens: Tokens) -> tuple[Tensor, int, int]:
        """Return query less key, (B or 1, T, S) int64, and the least and the most of them that are told apart.

        Where lengths are symbols, or nothing is there to be read, those that `max_seq_len` allows.
        """

        def found() -> tuple[Tokens, Tensor, int, int]:
            """Return the distances, and the keys' tokens: while they live, no others have their id."""
            apart = q_tokens.pos.unsqueeze(2) - k_tokens.pos.unsqueeze(1)
            if torch.compiler.is_compiling() or apart.is_meta:
                return k_tokens, apart, 1 - self.site.max_seq_len, self.site.max_seq_len - 1
            ends = [int(end) for end in apart.aminmax()] if apart.numel() else [0, 0]
            return k_tokens, apart, ends[0], ends[1]

        _, apart, least, most = q_tokens.once(("distances", id(k_tokens)), found)
        clamp, first = self.config.clamp, 0 if self.site.causal else least  # later tokens are not seen
        if clamp is not None:
            first, most = max(first, -clamp), min(most, clamp)
        return apart, first, max(first, most)

    def _vectors(self, distances: Tensor, dtype: torch.dtype) -> Tensor:
        """Return W r(n), (N, H, D), for distances (N,)."""
        wide = accumulation_dtype(dtype)
        ranks = torch.arange(0, self.site.d_model, 2, device=distances.device, dtype=wide)
        angles = distances.to(wide).unsqueeze(1) * (1.0 / self.config.theta ** (ranks / self.site.d_model))
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.project.weight.dtype)
        vectors: Tensor = torch.unflatten(self.project(waves), 1, (self.site.n_heads, self.site.head_dim))
        return vectors

    def _differ(self, q_tokens: Tokens, k_tokens: Tokens) -> Tensor | None:
        """Return which tokens are of different segments, (B or 1, 1, T, S) bool; None where none is told."""
        name = "token_type_ids"
        if name not in q_tokens.marks and name not in k_tokens.marks:
            return None
        kinds = [t.marks.get(name, torch.zeros_like(t.pos)) for t in (q_tokens, k_tokens)]
        return (kinds[0].unsqueeze(2) != kinds[1].unsqueeze(1)).unsqueeze(1)
