"""The gated feedforward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core.activation import activate
from ...core.activation_names import Activation
from ...core.component import Site
from ...core.context import Context
from ...core.feedforward import FeedForward
from ...core.linear import Linear
from ...core.moves import Concat, Layouts, Move, Take
from ...core.state import Memories


class GluFeedForward(FeedForward):
    """Multiply an activated gate with a second map, then narrow (Shazeer 2020, "GLU Variants Improve Transformer")."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """d_ff: the inner width (8/3 * d_model when left out, to cost as much as a plain one of 4 * d_model).

        activation: of the gate. bias: on all maps. joint: whether d_ff is the width of gate and value together.
        """

        d_ff: int | None = None
        activation: Activation = "silu"
        bias: bool = False
        joint: bool = False

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.width = config.d_ff or 8 * site.d_model // 3
        if config.joint:
            self.width //= 2
        # Gate and value come from one product: half the dispatches of two.
        self.gate_up = Linear(site.d_model, 2 * self.width, bias=config.bias)
        self.down = Linear(self.width, site.d_model, bias=config.bias, gain=(2 * site.n_layers) ** -0.5)

    def layouts(self) -> Layouts:
        """Publish `separate`: gate_proj, up_proj, down_proj; or `fused`: [gate | up] in gate_up_proj, down_proj."""
        separate: dict[str, Move] = {}
        fused: dict[str, Move] = {}
        for kind in ("weight",) if self.down.bias is None else ("weight", "bias"):
            gate, up, down = (Take(f"{name}_proj.{kind}") for name in ("gate", "up", "down"))
            separate |= {f"gate_up.{kind}": Concat((gate, up), (self.width, self.width)), f"down.{kind}": down}
            fused |= {f"gate_up.{kind}": Take(f"gate_up_proj.{kind}"), f"down.{kind}": down}
        return {"separate": separate, "fused": fused}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Change each token of x (B, T, C)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(activate(self.config.activation, gate) * up), state

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute the same as explicit products."""
        weight, bias = self.gate_up.weight, self.gate_up.bias
        gate, up = x @ weight[: self.width].T, x @ weight[self.width :].T
        if bias is not None:
            gate, up = gate + bias[: self.width], up + bias[self.width :]
        out = (activate(self.config.activation, gate) * up) @ self.down.weight.T
        return out + (0.0 if self.down.bias is None else self.down.bias), state
