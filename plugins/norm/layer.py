"""Layer normalization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.component import Site
from ...core.norm import Norm


class LayerNorm(Norm):
    """Center and scale each token to mean 0 and variance 1 (Ba et al. 2016)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """eps: added to the variance. bias: whether an offset is learned beside the scale.

        affine: whether anything is learned; without it each token is normalized and no more.
        """

        eps: float = 1e-5
        bias: bool = True
        affine: bool = True

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.eps = config.eps
        self.shape = (site.d_model,)
        self.weight = nn.Parameter(torch.empty(self.shape)) if config.affine else None
        self.bias = nn.Parameter(torch.empty(self.shape)) if config.affine and config.bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the plain normalization."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., C) with torch's kernel, which sums in fp32."""
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)

    def reference(self, x: Tensor) -> Tensor:
        """Compute the same from its definition."""
        centered = x - x.mean(-1, keepdim=True)
        y = centered / torch.sqrt(centered.square().mean(-1, keepdim=True) + self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias
