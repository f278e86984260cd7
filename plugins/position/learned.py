"""A learned vector for each position, added to embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.component import Site
from ...core.position import Position
from ...core.tokens import Tokens


class LearnedPosition(Position):
    """Add a learned vector for each position up to `max_seq_len` (Gehring et al. 2017)."""

    hooks: ClassVar[frozenset[str]] = frozenset({"add"})
    relative: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """std: the deviation of the first vectors' entries (d_model^-1/2, as token vectors, when left out).

        offset: the row of position 0; the rows before it serve nothing, as published tables have them. rows: of the
        table (max_seq_len + offset when left out); with fewer, a row of tokens is at most `rows - offset` long.
        """

        std: float | None = None
        offset: int = 0
        rows: int | None = None

        def __post_init__(self) -> None:
            if self.offset < 0:
                raise ValueError(f"offset: {self.offset} is not a row; at least 0")
            if self.rows is not None and self.rows <= self.offset:
                raise ValueError(f"rows: {self.rows} leave no position behind an offset of {self.offset}")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.weight = nn.Parameter(torch.empty(config.rows or site.max_seq_len + config.offset, site.d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the first vectors."""
        nn.init.normal_(self.weight, std=self.config.std or self.site.d_model**-0.5)

    def most(self) -> int:
        """Return how many positions have a row."""
        return len(self.weight) - int(self.config.offset)

    def add(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return x (B, T, C) plus the vector of each token's position."""
        # Padding may stand past the last position: any row serves there.
        pos = tokens.pos if tokens.valid is None else tokens.pos.clamp(max=self.most() - 1)
        return x + F.embedding(pos + self.config.offset if self.config.offset else pos, self.weight)
