"""Root mean square normalization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.component import Site
from ...core.linear import at_least_fp32
from ...core.norm import Norm

WIDE = (torch.float32, torch.float64)


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
        self._floors: dict[torch.dtype, Tensor] = {}  # no buffer: `.to(torch.bfloat16)` would round it
        self.weight = nn.Parameter(torch.empty(site.d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the plain normalization."""
        nn.init.constant_(self.weight, 1.0 - self.offset)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., C) with torch's kernel, summing in fp32, or more quickly where no gradient is asked."""
        weight: Tensor = self.weight
        if self.offset:
            wide = at_least_fp32(x)
            scale = weight.to(wide.dtype) + self.offset
            return F.rms_norm(wide, self.shape, scale, self.eps).to(x.dtype)
        if not torch.is_grad_enabled() and self._at_hand(x, weight):
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            mean = torch.addcmul(self._floors[x.dtype], length, length, value=1.0 / self.shape[0])
            return mean.rsqrt_().mul(x).mul_(weight)
        if weight.dtype != x.dtype:  # under autocast x is narrower than the weight; the kernel takes one dtype only
            weight = weight.to(x.dtype)
        return F.rms_norm(x, self.shape, weight, self.eps)

    def _at_hand(self, x: Tensor, weight: Tensor) -> bool:
        """Say whether a few plain operations will do, which keep nothing for gradients: on CPU a third of the time."""
        if x.dtype != weight.dtype or x.dtype not in WIDE or not x.is_cpu or torch.compiler.is_compiling():
            return False
        if x.dtype not in self._floors:
            with torch.inference_mode(False):  # what is made in one pass serves all others too
                self._floors[x.dtype] = torch.tensor(self.eps, dtype=x.dtype, device=x.device)
        return True

    def reference(self, x: Tensor) -> Tensor:
        """Compute the same from its definition."""
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.weight + self.offset)
