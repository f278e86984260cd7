"""Root mean square normalization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.component import Site
from ...core.linear import at_least_fp32
from ...core.norm import Norm


class RmsNorm(Norm):
    """Scale each token to a root mean square of 1, without centering it (Zhang and Sennrich 2019)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """eps: added to the mean square. unit_offset: whether what is learned is how far the scale is from 1.

        With it the scale 1 + weight is applied in fp32, before x is brought back to its own dtype (Gemma Team 2024).
        """

        eps: float = 1e-6
        unit_offset: bool = False

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.eps = config.eps
        self.offset = float(config.unit_offset)
        self.shape = (site.d_model,)
        self.weight = nn.Parameter(torch.empty(site.d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the plain normalization."""
        nn.init.constant_(self.weight, 1.0 - self.offset)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., C) with torch's kernel, which sums in fp32."""
        weight: Tensor = self.weight
        if self.offset:
            wide = at_least_fp32(x)
            scale = weight.to(wide.dtype) + self.offset
            return F.rms_norm(wide, self.shape, scale, self.eps).to(x.dtype)
        if weight.dtype != x.dtype:  # under autocast x is narrower than the weight; the kernel takes one dtype only
            weight = weight.to(x.dtype)
        return F.rms_norm(x, self.shape, weight, self.eps)

    def reference(self, x: Tensor) -> Tensor:
        """Compute the same from its definition."""
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.weight + self.offset)
