"""Fixed waves added to embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.component import Site
from ...core.position import Position
from ...core.state import accumulation_dtype
from ...core.tokens import Tokens


class SinusoidalPosition(Position):
    """Add sines and cosines of geometrically spaced wavelengths (Vaswani et al. 2017)."""

    hooks: ClassVar[frozenset[str]] = frozenset({"add"})
    relative: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """theta: the longest wavelength over 2 pi, tokens. scale: of the waves, whose mean square is 1/2."""

        theta: float = 10000.0
        scale: float = 1.0

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if site.d_model % 2:
            raise ValueError(f"d_model: {site.d_model} is odd; sines and cosines come in pairs")

    def add(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return x (B, T, C) plus the waves at each position: sine and cosine alternate along C."""
        waves: Tensor = tokens.once(("sinusoidal", self.config, x.shape[-1], x.dtype), lambda: self._waves(x, tokens))
        return x + waves

    def _waves(self, x: Tensor, tokens: Tokens) -> Tensor:
        wide = accumulation_dtype(x.dtype)
        rank = torch.arange(0, self.site.d_model, 2, device=x.device, dtype=wide)
        angle = tokens.pos.to(wide).unsqueeze(-1) * torch.exp(rank * (-math.log(self.config.theta) / self.site.d_model))
        waves = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
        scaled: Tensor = waves * self.config.scale
        return scaled.to(x.dtype)
