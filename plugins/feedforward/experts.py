"""The feedforward of which each token takes a part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.activation import activate
from ...core.activation_names import Activation
from ...core.component import Site
from ...core.context import Context
from ...core.feedforward import FeedForward
from ...core.linear import Linear
from ...core.moves import Concat, Layouts, Move, Stack, Take
from ...core.routing import Router, Routing
from ...core.state import Memories


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Say what all tokens go through besides the experts that they take (Dai et al. 2024).

    n: how many experts; side by side, they are one of n times the width. d_ff: the inner width of each (that of the
    others when left out). gate: multiply their result by a sigmoid of the input, one number a token (Yang et al. 2024).
    """

    n: int = 1
    d_ff: int | None = None
    gate: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n: {self.n} is not a number of experts; at least 1")


class ExpertsFeedForward(FeedForward):
    """Send each token through the gated feedforwards that a router scores highest (Shazeer et al. 2017, Jiang 2024).

    Their results are summed by the weights that the router gives them. Tokens are sorted by expert, so that each costs
    what its own experts do; a graph, whose shapes can't follow from the routing, computes every expert for every token.
    """

    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_experts": 5, "n_active": 2, "d_ff": 14},
        {"n_experts": 4, "n_active": 3, "d_ff": 14, "renormalise": False},
        {
            "n_experts": 9, "n_active": 3, "d_ff": 10, "shared": Shared(n=2),
            "router": Routing(score="sigmoid", n_groups=3, n_active_groups=2, selection_bias=True, scale=2.5),
        },
        {"n_experts": 3, "n_active": 2, "d_ff": 10, "shared": Shared(d_ff=7, gate=True)},
    )  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """n_experts: how many there are. n_active: how many a token takes.

        d_ff: the inner width of each (8/3 * d_model when left out). activation: of the gates. renormalise: whether the
        weights of the experts that are taken are scaled to a sum of 1. router: how they are scored and chosen. shared:
        what all tokens go through besides.
        """

        n_experts: int
        n_active: int
        d_ff: int | None = None
        activation: Activation = "silu"
        renormalise: bool = True
        router: Routing = field(default_factory=Routing)
        shared: Shared | None = None

        def __post_init__(self) -> None:
            if not 1 <= self.n_active <= self.n_experts:
                raise ValueError(f"n_active: {self.n_active} of {self.n_experts} experts; at least 1, at most all")
            try:
                self.router.check(self.n_experts, self.n_active)
            except ValueError as error:
                raise ValueError(f"router.{error}") from None

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.width = config.d_ff or 8 * site.d_model // 3
        self.router = Router(site.d_model, config.n_experts, config.n_active, config.renormalise, config.router)
        self.gate_up = nn.Parameter(torch.empty(config.n_experts, 2 * self.width, site.d_model))
        self.down = nn.Parameter(torch.empty(config.n_experts, site.d_model, self.width))
        self.shared_gate_up = self.shared_down = self.shared_gate = None
        if config.shared is not None:
            self.shared_width = config.shared.n * (config.shared.d_ff or self.width)
            self.shared_gate_up = Linear(site.d_model, 2 * self.shared_width)
            self.shared_down = Linear(self.shared_width, site.d_model, gain=(2 * site.n_layers) ** -0.5)
            self.shared_gate = Linear(site.d_model, 1) if config.shared.gate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every expert as a gated feedforward alone does."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]
        nn.init.normal_(self.gate_up, std=self.site.d_model**-0.5)
        nn.init.normal_(self.down, std=(2 * self.site.n_layers * self.width) ** -0.5)

    def layouts(self) -> Layouts:
        """Publish the router in gate; experts one by one, or `stacked` in gate_up_proj (E, 2F, C), down_proj (E, C, F).

        One by one they are in experts.N: `separate` as gate_proj, up_proj, down_proj; `numbered` as w1, w3, w2. What
        is shared is in shared_experts, with the first of these names, and its gate in shared_expert_gate.
        """
        everywhere = self._published()

        def each(gate: str, up: str, down: str) -> dict[str, Move]:
            names = [f"experts.{number}." for number in range(self.config.n_experts)]
            inner = [(Take(f"{name}{gate}.weight"), Take(f"{name}{up}.weight")) for name in names]
            return everywhere | {
                "gate_up": Stack(tuple(Concat(pair, (self.width, self.width)) for pair in inner)),
                "down": Stack(tuple(Take(f"{name}{down}.weight") for name in names)),
            }

        whole = {"gate_up": Take("experts.gate_up_proj"), "down": Take("experts.down_proj")}
        return {
            "separate": each("gate_proj", "up_proj", "down_proj"),
            "numbered": each("w1", "w3", "w2"),
            "stacked": everywhere | whole,
        }

    def _published(self) -> dict[str, Move]:
        """Return what all layouts have in common: the router, and what is shared."""
        moves: dict[str, Move] = {"router.weight": Take("gate.weight")}
        if self.config.router.selection_bias:
            moves["router.selection_bias"] = Take("gate.e_score_correction_bias")
        if self.config.shared is not None:
            gate, up, down = (Take(f"shared_experts.{name}_proj.weight") for name in ("gate", "up", "down"))
            moves["shared_gate_up.weight"] = Concat((gate, up), (self.shared_width, self.shared_width))
            moves["shared_down.weight"] = down
        if self.shared_gate is not None:
            moves["shared_gate.weight"] = Take("shared_expert_gate.weight")
        return moves

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Change each token of x (B, T, C)."""
        if torch.compiler.is_compiling() or x.is_meta:
            return self.reference(x, context, state)
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router.choose(flat)
        order = chosen.flatten().argsort(stable=True)
        tokens = order // self.config.n_active
        counts = chosen.flatten().bincount(minlength=self.config.n_experts).tolist()
        shares = weights.flatten()[order].unsqueeze(1)
        out = torch.zeros_like(flat, dtype=shares.dtype)
        # Taken apart at once: the gradient of one of them, by its number, would be as large as that of all.
        experts = zip(self.gate_up.unbind(), self.down.unbind(), strict=True)
        for (gate_up, down), rows, share in zip(experts, tokens.split(counts), shares.split(counts), strict=True):
            if len(rows):
                inner = self._inner(flat[rows] @ gate_up.T)
                out = out.index_add(0, rows, (inner @ down.T) * share)
        return self._with_shared(x, out), state

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute every expert for every token, and sum them with 0 for those that are not taken."""
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router.choose(flat)
        none = weights.new_zeros(flat.shape[0], self.config.n_experts)
        shares = none.scatter(1, chosen, weights)
        inner = self._inner(flat.unsqueeze(0) @ self.gate_up.mT)
        out = ((inner @ self.down.mT) * shares.T.unsqueeze(-1)).sum(0)
        return self._with_shared(x, out), state

    def _with_shared(self, x: Tensor, out: Tensor) -> Tensor:
        """Return what the experts of x (B, T, C) came to, out (B * T, C), with what is shared added."""
        out = out.to(x.dtype).reshape(x.shape)
        if self.shared_gate_up is None or self.shared_down is None:
            return out
        shared: Tensor = self.shared_down(self._inner(self.shared_gate_up(x)))
        return out + (shared if self.shared_gate is None else shared * torch.sigmoid(self.shared_gate(x)))

    def _inner(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return activate(self.config.activation, gate) * up
