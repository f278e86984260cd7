"""A feedforward whose activation is the largest of several maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transom.core import Context, FeedForward, Linear, Site


class NewFeedForward(FeedForward):
    """Widen by several maps, keep the largest of each entry, and narrow (Goodfellow et al. 2013, "Maxout")."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """d_ff: the inner width (2 * d_model when left out). pieces: how many maps compete for an entry."""

        d_ff: int | None = None
        pieces: int = 2

        def __post_init__(self) -> None:
            if self.pieces < 1:
                raise ValueError(f"pieces: {self.pieces} leaves nothing to choose from; at least 1")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.width = config.d_ff or 2 * site.d_model
        self.up = Linear(site.d_model, config.pieces * self.width)
        # What writes to the residual stream starts small, so that its variance stays near 1 at every depth.
        self.down = Linear(self.width, site.d_model, gain=(2 * site.n_layers) ** -0.5)

    def forward(
        self, x: Tensor, context: Context, state: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Change each token of x (B, T, C) on its own; a feedforward that remembers nothing hands its state on."""
        pieces = self.up(x).unflatten(-1, (self.config.pieces, self.width))
        return self.down(pieces.amax(-2)), state

    def reference(
        self, x: Tensor, context: Context, state: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Compute the same map by map."""
        maps = [x @ weight.T for weight in self.up.weight.split(self.width)]
        largest = maps[0]
        for other in maps[1:]:
            largest = torch.maximum(largest, other)
        return largest @ self.down.weight.T, state
