"""The plain feedforward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core.activation import activate
from ...core.activation_names import Activation
from ...core.component import Site
from ...core.context import Context
from ...core.feedforward import FeedForward
from ...core.linear import Linear
from ...core.moves import Layouts, Take, conv1d
from ...core.state import Memories

_FC = (("up", "fc1"), ("down", "fc2"))
_CONV1D = (("up", "c_fc"), ("down", "c_proj"))


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

    def layouts(self) -> Layouts:
        """Publish `fc`: fc1 and fc2; or `conv1d`: c_fc and c_proj, transposed."""
        kinds = ("weight",) if self.up.bias is None else ("weight", "bias")
        return {
            "fc": {f"{own}.{kind}": Take(f"{name}.{kind}") for own, name in _FC for kind in kinds},
            "conv1d": {f"{own}.{kind}": conv1d(f"{name}.{kind}") for own, name in _CONV1D for kind in kinds},
        }

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Change each token of x (B, T, C)."""
        return self.down(activate(self.config.activation, self.up(x))), state

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute the same as explicit products."""
        inner = x @ self.up.weight.T + (0.0 if self.up.bias is None else self.up.bias)
        out = activate(self.config.activation, inner) @ self.down.weight.T
        return out + (0.0 if self.down.bias is None else self.down.bias), state
