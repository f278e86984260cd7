"""Fixed waves added to embeddings."""

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


class SinusoidalPosition(Position):
    """Add sines and cosines of geometrically spaced wavelengths (Vaswani et al. 2017)."""

    hooks: ClassVar[frozenset[str]] = frozenset({"add"})
    relative: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """theta: the longest wavelength over 2 pi, tokens. scale: of the waves, whose mean square is 1/2.

        layout: whether sines and cosines alternate (`pairs`), or all sines come first (`halves`). endpoint: whether
        theta is the slowest wave itself, instead of one step beyond it (Radford et al. 2023).
        """

        theta: float = 10000.0
        scale: float = 1.0
        layout: Literal["pairs", "halves"] = "pairs"
        endpoint: bool = False

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if site.d_model % 2:
            raise ValueError(f"d_model: {site.d_model} is odd; sines and cosines come in pairs")
        if config.endpoint and site.d_model < 4:
            raise ValueError(f"endpoint: {site.d_model // 2} wave has no first and last; two are needed")

    def add(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return x (B, T, C) plus the waves at each position."""
        waves: Tensor = tokens.once(("sinusoidal", self.config, x.shape[-1], x.dtype), lambda: self._waves(x, tokens))
        return x + waves

    def _waves(self, x: Tensor, tokens: Tokens) -> Tensor:
        wide = accumulation_dtype(x.dtype)
        count = self.site.d_model // 2
        rank = torch.arange(count, device=x.device, dtype=wide)
        speed = torch.exp(rank * (-math.log(self.config.theta) / (count - self.config.endpoint)))
        angle = tokens.pos.to(wide).unsqueeze(-1) * speed
        both = [angle.sin(), angle.cos()]
        waves = torch.cat(both, -1) if self.config.layout == "halves" else torch.stack(both, -1).flatten(-2)
        scaled: Tensor = waves * self.config.scale
        return scaled.to(x.dtype)
