"""Retention: sums over earlier tokens that fade at a fixed rate, as a mixer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.attention import Declaration
from ...core.fading import FadingConfig, FadingMixer
from ...core.linear import at_least_fp32


class RetentionAttention(FadingMixer):
    """Carry a sum of outer products that fades at a rate of each head's own, and read it (Sun et al. 2023).

    Head i of H keeps a = 1 - 1 / n of the past at each token, with n from the least to the most of `span` in equal
    ratios. The paper's positions are `rope`; where they turn queries and keys, a product of two tells their distance,
    as its decay does.
    """

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "documents", "rotate", "compile"}),
        lacks={
            "two_sided": "what a token leaves fades with those that follow it, and what comes later never enters a sum",
            "score": "it sums outer products before any query meets them, so that there is no score to add a bias to",
            "cross": "it reads one sequence in order, and a memory's tokens come at no time of it",
            "pairs": "it reads tokens in the order of their columns, and knows no other",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 6, "span": (2.0, 40.0), "eps": 0.05},
        {"n_heads": 3, "head_dim": 4, "v_dim": 5, "eps": 0.1},
    )
    wide = 2

    @dataclass(frozen=True, kw_only=True)
    class Config(FadingConfig):
        """n_heads: heads. head_dim: width of a head's queries and keys (d_model / n_heads). v_dim: of its values, twice
        that when left out. span: for how many tokens the first head remembers, and the last. eps: of the norm.
        """

        span: tuple[float, float] = (32.0, 512.0)

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1.0 < self.span[0] <= self.span[1]:
                raise ValueError(f"span: from {self.span[0]} to {self.span[1]} tokens is no span; the first above 1")

    config: Config

    def log_decay(self, x: Tensor) -> Tensor:
        """Return the logarithm of what each head keeps, (B, T, H), whatever the tokens are."""
        low, high = self.config.span
        # Formed anew, and not kept: a rate that is rounded to half precision fades otherwise over a long text.
        rank = torch.arange(self.n_heads, dtype=at_least_fp32(x).dtype, device=x.device) / max(1, self.n_heads - 1)
        return torch.log1p(-((high / low) ** -rank) / low).expand(x.shape[0], x.shape[1], -1)
