"""Gated linear attention: sums over earlier tokens that fade by what the tokens say, as a mixer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ...core.attention import Declaration
from ...core.component import Site
from ...core.fading import FadingConfig, FadingMixer
from ...core.linear import Linear, at_least_fp32


class GatedLinearAttention(FadingMixer):
    """Carry a sum of outer products that fades by a sigmoid of each token, and read it (Yang et al. 2023).

    a_t = sigmoid(map of x_t)^(1 / temper): of each entry of a key by a map through `rank` numbers, or one for all
    entries of a head.
    """

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "documents", "compile"}),
        ignores=frozenset({"rotate"}),
        lacks={
            "two_sided": "what a token leaves fades with those that follow it, and what comes later never enters a sum",
            "score": "it sums outer products before any query meets them, so that there is no score to add a bias to",
            "cross": "it reads one sequence in order, and a memory's tokens come at no time of it",
            "pairs": "it reads tokens in the order of their columns, and knows no other",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 6, "rank": 5, "eps": 0.05},
        {"n_heads": 3, "head_dim": 4, "v_dim": 5, "decay": "head", "temper": 3.0, "eps": 0.1},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(FadingConfig):
        """n_heads: heads. head_dim: width of a head's queries and keys (d_model / n_heads). v_dim: of its values, the
        same when left out. decay: whether each `entry` of a key fades by itself, or a `head` as a whole. rank: numbers
        that decays of entries are made of. temper: the root that is taken of a sigmoid. eps: of the norm.
        """

        decay: Literal["entry", "head"] = "entry"
        rank: int = 16
        temper: float = 16.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.rank < 1:
                raise ValueError(f"rank: must be at least 1, not {self.rank}")
            if self.temper <= 0.0:
                raise ValueError(f"temper: {self.temper} is no root; above 0")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.by_entry = config.decay == "entry"
        if self.by_entry:
            through = Linear(site.d_model, config.rank)
            self.fade = nn.Sequential(through, Linear(config.rank, self.n_heads * self.head_dim, bias=True))
        else:
            self.fade = nn.Sequential(Linear(site.d_model, self.n_heads, bias=True))

    def log_decay(self, x: Tensor) -> Tensor:
        """Return the logarithm of what each token leaves, (B, T, H, D), or (B, T, H) for whole heads."""
        fades = F.logsigmoid(at_least_fp32(self.fade(x))) / self.config.temper
        return fades.unflatten(-1, (self.n_heads, -1)) if self.by_entry else fades
