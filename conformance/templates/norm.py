"""Root mean square normalization whose gain is written as a difference from 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.core import Norm, Site


class NewNorm(Norm):
    """Scale each token to a root mean square of 1, then by 1 + weight, which weight decay draws to 1 and not to 0."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """eps: added to the mean square."""

        eps: float = 1e-6

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.eps = config.eps
        self.weight = nn.Parameter(torch.empty(site.d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the plain normalization."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., C) with torch's kernel; shape and dtype stay."""
        return F.rms_norm(x, self.weight.shape, (1.0 + self.weight).to(x.dtype), self.eps)

    def reference(self, x: Tensor) -> Tensor:
        """Compute the same from the definition."""
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)
