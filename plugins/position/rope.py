"""Queries and keys turned by their positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...core.component import Site
from ...core.position import Position, Turns
from ...core.scaling import Scaling
from ...core.state import accumulation_dtype
from ...core.tokens import Tokens, lengths

LEAST = 256
"""Tokens that a table of turns begins with."""


class RopePosition(Position):
    """Turn pairs of entries of each query and key by angles that grow with position (Su et al. 2021)."""

    hooks: ClassVar[frozenset[str]] = frozenset({"rotate"})
    relative: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """theta: the slowest pair turns once in about 2 pi theta tokens. fraction: the share of a head that turns.

        layout: `half` pairs entry i with i + d/2, `interleaved` pairs 2i with 2i + 1. scaling: how it is stretched to
        texts longer than those that it was trained on.
        """

        theta: float = 10000.0
        fraction: float = 1.0
        layout: Literal["half", "interleaved"] = "half"
        scaling: Scaling | None = None

        def __post_init__(self) -> None:
            if not 0.0 < self.fraction <= 1.0:
                raise ValueError(f"fraction: {self.fraction} is not a share of a head; above 0, at most 1")
            if self.theta <= 1.0:
                raise ValueError(f"theta: {self.theta} gives no slow pair; above 1")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.width = int(site.head_dim * config.fraction)
        if self.width < 2 or self.width % 2:
            raise ValueError(
                f"fraction: {self.width} of a head's {site.head_dim} entries turn; an even number is needed"
            )
        self.scaling = None if config.scaling is None else config.scaling.resolved(site.max_seq_len)
        for factors in () if self.scaling is None else (self.scaling.short, self.scaling.long):
            if factors is not None and len(factors) != self.width // 2:
                raise ValueError(f"scaling: {len(factors)} factors for the {self.width // 2} pairs that turn")
        if self.scaling is not None and self.scaling.kind == "dynamic" and self.width == 2:
            raise ValueError("scaling: dynamic leaves the quickest pair as it is, and here no other turns")
        self._kept: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._far = self.edges()
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def edges(self) -> tuple[int, ...]:
        """Return the lengths beyond which all of a text is turned otherwise."""
        return () if self.scaling is None else self.scaling.edges(self.site.max_seq_len)

    def rotate(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return x (B, T, H, D) turned; computed in fp32 at least."""
        cos, sin = self._shared(x.dtype, tokens)
        turning = x if self.width == x.shape[-1] else x[..., : self.width]
        if turning.dtype != cos.dtype:
            turning = turning.to(cos.dtype)
        if self.config.layout == "half":
            partners = turning.roll(self.width // 2, -1)
        else:
            partners = turning.unflatten(-1, (-1, 2)).roll(1, -1).flatten(-2)
        turned = torch.addcmul(turning * cos, partners, sin)
        if turned.dtype != x.dtype:
            turned = turned.to(x.dtype)
        return turned if self.width == x.shape[-1] else torch.cat([turned, x[..., self.width :]], dim=-1)

    def prepare(self, x: Tensor, tokens: Tokens) -> None:
        """Make the cosines and sines."""
        self._shared(x.dtype, tokens)

    def turning(self) -> Turns | None:
        """Return the table, unless the length of a text decides how fast its tokens turn."""
        if self._far:
            return None
        dtype = accumulation_dtype(torch.get_default_dtype())
        positions = torch.arange(2 * self.site.max_seq_len).unsqueeze(0)
        cos, sin = (t[0, :, 0] for t in self._cos_sin(Tokens(positions), dtype))
        pairs = self.width // 2
        if self.config.layout == "half":  # the second of a pair has its sine as it is
            return Turns(cos[:, pairs:], sin[:, pairs:], interleaved=False)
        return Turns(cos[:, 1::2], sin[:, 1::2], interleaved=True)

    def _shared(self, dtype: torch.dtype, tokens: Tokens) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(dtype)
        return tokens.once((self, dtype), lambda: self._turns(tokens, dtype))

    def _turns(self, tokens: Tokens, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return what `_cos_sin` does: of tokens in order, from a table that is kept and grows with the longest row."""
        if torch.compiler.is_compiling() or tokens.first is None or self._far:
            return self._cos_sin(tokens, dtype)
        first, count, key = tokens.first, tokens.pos.shape[1], (tokens.pos.device, dtype)
        if key not in self._tables or self._tables[key][0].shape[1] < first + count:
            size = max(LEAST, 1 << (first + count - 1).bit_length())
            with torch.inference_mode(False), torch.no_grad():  # what is made in one pass serves all others too
                self._tables[key] = self._cos_sin(Tokens(torch.arange(size, device=key[0]).unsqueeze(0)), dtype)
        cos, sin = self._tables[key]
        return cos.narrow(1, first, count), sin.narrow(1, first, count)

    def _cos_sin(self, tokens: Tokens, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of each entry, (B or 1, T, 1, width); the first of a pair has its sine negated."""
        if self._far and self.scaling is not None:
            plain, longest = self._plain(tokens.pos.device, dtype), lengths(tokens)[:, :, None, None]
            speeds = self._laid_out(self.scaling.scaled_by_length(plain, self.config.theta, longest))
        else:
            speeds = self._speeds(tokens.pos.device, dtype)
        angle = tokens.pos[:, :, None, None] * speeds
        size = 1.0 if self.scaling is None else self.scaling.size
        return (angle.cos(), angle.sin()) if size == 1.0 else (angle.cos() * size, angle.sin() * size)

    def _speeds(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return how fast each entry turns, (width,); kept, but for a graph, which makes them a part of itself."""
        # No buffer: `.to(torch.bfloat16)` would round it, and far positions with it.
        if torch.compiler.is_compiling():
            return self._make_speeds(device, dtype)
        if (device, dtype) not in self._kept:
            self._kept[device, dtype] = self._make_speeds(device, dtype)
        return self._kept[device, dtype]

    def _make_speeds(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        speed = self._plain(device, dtype)
        return self._laid_out(speed if self.scaling is None else self.scaling.scaled(speed, self.config.theta))

    def _plain(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return how fast each pair turns that is not slowed down, (pairs,)."""
        rank = torch.arange(0, self.width, 2, device=device, dtype=dtype)
        return torch.exp(rank * (-math.log(self.config.theta) / self.width))

    def _laid_out(self, speed: Tensor) -> Tensor:
        """Return how fast entries turn, (..., width), of how fast pairs do, (..., pairs)."""
        pair = [-speed, speed]
        return torch.cat(pair, -1) if self.config.layout == "half" else torch.stack(pair, dim=-1).flatten(-2)
