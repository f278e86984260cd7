"""Learned biases on scores, by buckets of distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.component import Site
from ...core.position import Position
from ...core.tokens import Tokens


class T5BiasPosition(Position):
    """Add to each score a learned number for its head and bucket of distance (Raffel et al. 2020).

    Near distances have a bucket each, far ones share buckets that widen logarithmically up to `max_distance`. The table
    belongs to the stack: all its layers share it.
    """

    hooks: ClassVar[frozenset[str]] = frozenset({"score"})
    relative: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """buckets: how many in all, halved between the sides where both are seen. max_distance: of the last, tokens."""

        buckets: int = 32
        max_distance: int = 128

        def __post_init__(self) -> None:
            if self.buckets < 4 or self.buckets % 4:
                raise ValueError(f"buckets: {self.buckets} can't be split in near and far, both ways; a multiple of 4")
            if self.max_distance <= self.buckets:
                raise ValueError(f"max_distance: {self.max_distance} must be above buckets {self.buckets}")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.weight = nn.Parameter(torch.empty(config.buckets, site.n_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with small biases."""
        nn.init.normal_(self.weight, std=0.1)

    def score(self, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
        """Return the biases (B or 1, H, T, S)."""
        offset = k_tokens.pos.unsqueeze(1) - q_tokens.pos.unsqueeze(2)
        return F.embedding(self.bucket(offset), self.weight).permute(0, 3, 1, 2)

    def bucket(self, offset: Tensor) -> Tensor:
        """Return the bucket of each offset (key less query, tokens), int64 of the same shape."""
        count = self.config.buckets
        if self.site.causal:
            side, distance = torch.zeros_like(offset), (-offset).clamp(min=0)
        else:
            count //= 2
            side, distance = (offset > 0) * count, offset.abs()
        near = count // 2
        ratio = torch.log(distance.clamp(min=1).float() / near) / math.log(self.config.max_distance / near)
        far = (near + (ratio * (count - near)).long()).clamp(max=count - 1)
        return side + torch.where(distance < near, distance, far)
