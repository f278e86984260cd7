"""Attention through random features, whose products are softmax attention's on average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...core.attention import Declaration
from ...core.component import Site
from ...core.features import FeatureAttention
from ...core.heads import HeadsConfig
from ...core.linear import at_least_fp32


class PerformerAttention(FeatureAttention):
    """Weigh values by positive random features, exp(w . x - |x|^2 / 2) for drawn w (Choromanski et al. 2020, FAVOR+).

    Of x = q and k, scaled, the mean of their products over w is exp(scale q . k). The w are normal, and orthogonal to
    each other in blocks of D, which lowers the variance; they are drawn once and kept with the weights. Rotations turn
    the features, and in the numerator only: turned before, they would tell absolute places by what w were drawn.
    """

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "cross", "documents", "rotate", "compile"}),
        lacks={
            "score": "it sums keys before any query meets them, so that there is no score to add a bias to",
            "pairs": "it sums keys before any query meets them, so that none can be hidden from one query alone",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ({"n_heads": 6, "n_features": 10}, {"n_heads": 3})
    turns: ClassVar[Literal["before", "itself"]] = "itself"
    drawn: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """n_features: random features of a query or key; D log D, rounded up to an even number, when left out."""

        n_features: int | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.n_features is not None and self.n_features < 1:
                raise ValueError(f"n_features: {self.n_features} is not a number of features; at least 1")

        def features(self, head_dim: int) -> int:
            """Return how many features a head of `head_dim` has."""
            return self.n_features or 2 * max(1, math.ceil(head_dim * math.log(head_dim) / 2))

        def heads(self, d_model: int) -> tuple[int, int]:
            """Return the number of the query heads, and how many features positions turn."""
            n_heads, head_dim = super().heads(d_model)
            return n_heads, self.features(head_dim)

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.n_features = config.features(self.head_dim)
        self.register_buffer("drawn", torch.empty(self.n_features, self.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the directions, (n_features, D)."""
        if self.drawn.is_meta:
            return
        width = self.head_dim
        blocks = torch.randn(-(-self.n_features // width), width, width, dtype=torch.float64)
        # The sign of R's diagonal is the method's choice: with it, directions are uniform.
        turned, triangle = torch.linalg.qr(blocks)
        turned = turned * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        lengths = torch.randn(*blocks.shape, dtype=torch.float64).norm(dim=-1, keepdim=True)  # as of a normal vector
        self.drawn.copy_((turned.mT * lengths).flatten(0, 1)[: self.n_features])

    @property
    def width(self) -> int:
        """Return how many features a query or key has."""
        return self.n_features

    def query_features(self, q: Tensor) -> Tensor:
        """Return phi of queries; a factor that all features of one share is left out, as it meets itself below."""
        seen = self._seen(at_least_fp32(q) * (self.scale * math.sqrt(self.head_dim)))[0]
        shifted: Tensor = seen - seen.amax(-1, keepdim=True).detach()
        return shifted.exp()

    def key_features(self, k: Tensor) -> Tensor:
        """Return phi of keys; keys whose weight is beyond the smallest number weigh nothing."""
        seen, squares = self._seen(k)
        return (seen - squares).exp() / math.sqrt(self.n_features)

    def _seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return w . y for all w, and |y|^2 / 2, of y = x D^-1/4, x (..., D)."""
        x = at_least_fp32(x) * self.head_dim**-0.25
        return x @ self.drawn.to(x.dtype).T, x.square().sum(-1, keepdim=True) / 2
