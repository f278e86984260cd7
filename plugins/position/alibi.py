"""A penalty on scores that grows with distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.position import Position
from ...core.state import accumulation_dtype
from ...core.tokens import Tokens


class AlibiPosition(Position):
    """Lower each score by its distance times a slope of the head's own (Press et al. 2022)."""

    hooks: ClassVar[frozenset[str]] = frozenset({"score"})
    relative: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """scale: what all slopes are multiplied by."""

        scale: float = 1.0

    def score(self, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
        """Return the penalties (B or 1, H, T, S): 0 at the token itself, negative on both sides."""
        wide = accumulation_dtype(q.dtype)
        distance = (q_tokens.pos.unsqueeze(2) - k_tokens.pos.unsqueeze(1)).abs().to(wide)
        slopes = torch.tensor(self.slopes(self.site.n_heads), dtype=wide, device=q.device) * self.config.scale
        penalty: Tensor = -distance.unsqueeze(1) * slopes[:, None, None]
        return penalty

    @staticmethod
    def slopes(n_heads: int) -> list[float]:
        """Return each head's slope: powers of 2^(-8/n) for a power of two, else the next one's in between as well."""
        power = 2 ** math.floor(math.log2(n_heads))
        slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
        between = [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(n_heads - power)]
        return slopes + between
