"""The plain feedforward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core.component import Site
from ...core.context import Context
from ...core.feedforward import Activation, FeedForward, activate
from ...core.linear import Linear
from ...core.state import Memories


class MlpFeedForward(FeedForward):
    """Widen, activate and narrow each token (Vaswani et al. 2017)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """d_ff: the inner width (4 * d_model when left out). activation: of the inner vector. bias: on both maps."""

        d_ff: int | None = None
        activation: Activation = "gelu"
        bias: bool = False

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        width = config.d_ff or 4 * site.d_model
        self.up = Linear(site.d_model, width, bias=config.bias)
        self.down = Linear(width, site.d_model, bias=config.bias, gain=(2 * site.n_layers) ** -0.5)

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Change each token of x (B, T, C)."""
        return self.down(activate(self.config.activation, self.up(x))), state

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute the same as explicit products."""
        inner = x @ self.up.weight.T + (0.0 if self.up.bias is None else self.up.bias)
        out = activate(self.config.activation, inner) @ self.down.weight.T
        return out + (0.0 if self.down.bias is None else self.down.bias), state
