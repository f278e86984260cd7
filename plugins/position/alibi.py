"""A penalty on scores that grows with distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...core.component import Site
from ...core.position import Position
from ...core.state import accumulation_dtype
from ...core.tokens import Tokens


class AlibiPosition(Position):
    """Lower each score by its distance times a slope of the head's own (Press et al. 2022)."""

    hooks: ClassVar[frozenset[str]] = frozenset({"score"})
    relative: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """scale: what all slopes are multiplied by (rsqrt_head_dim: head_dim^-1/2, as Falcon; Almazrouei et al. 2023).

        rounded: what slopes and places are rounded to before they are told apart, as models were trained that computed
        them so; far places are then no longer a token apart.
        """

        scale: float | Literal["rsqrt_head_dim"] = 1.0
        rounded: Literal["bf16"] | None = None

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scale = site.head_dim**-0.5 if config.scale == "rsqrt_head_dim" else config.scale

    def score(self, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
        """Return the penalties (B or 1, H, T, S): 0 at the token itself, negative on both sides."""
        wide = accumulation_dtype(q.dtype)
        slopes = torch.tensor(self.slopes(self.site.n_heads), dtype=wide, device=q.device)[:, None, None]
        if self.config.rounded is None:
            distance = (q_tokens.pos.unsqueeze(2) - k_tokens.pos.unsqueeze(1)).abs().to(wide)
            penalty: Tensor = -distance.unsqueeze(1) * (slopes * self.scale)
            return penalty
        # How far down each place is, rounded as a product of two bf16 numbers is: in wider ones it is exact.
        slopes = _rounded(slopes)
        down_q = _rounded(_rounded(q_tokens.pos.to(wide))[:, None, :, None] * slopes)
        down_k = _rounded(_rounded(k_tokens.pos.to(wide))[:, None, None, :] * slopes)
        return -(down_q - down_k).abs() * self.scale

    @staticmethod
    def slopes(n_heads: int) -> list[float]:
        """Return each head's slope: powers of 2^(-8/n) for a power of two, else the next one's in between as well."""
        power = 2 ** math.floor(math.log2(n_heads))
        slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
        between = [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(n_heads - power)]
        return slopes + between


def _rounded(x: Tensor) -> Tensor:
    """Return x with its entries rounded to bf16."""
    return x.to(torch.bfloat16).to(x.dtype)
