"""The feedforward of which each token takes a part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ...core.component import Site
from ...core.context import Context
from ...core.feedforward import Activation, FeedForward, activate
from ...core.linear import Linear, at_least_fp32
from ...core.moves import Concat, Layouts, Move, Stack, Take
from ...core.state import Memories


class ExpertsFeedForward(FeedForward):
    """Send each token through the gated feedforwards that a router scores highest (Shazeer et al. 2017, Jiang 2024).

    Their results are summed by the softmax of the router's scores. Tokens are sorted by expert, so that each costs what
    its own experts do; a graph, whose shapes can't follow from the routing, computes every expert for every token.
    """

    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_experts": 5, "n_active": 2, "d_ff": 14},
        {"n_experts": 4, "n_active": 3, "d_ff": 14, "renormalise": False},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """n_experts: how many there are. n_active: how many a token takes.

        d_ff: the inner width of each (8/3 * d_model when left out). activation: of the gates. renormalise: whether the
        weights of the experts that are taken are scaled to a sum of 1.
        """

        n_experts: int
        n_active: int
        d_ff: int | None = None
        activation: Activation = "silu"
        renormalise: bool = True

        def __post_init__(self) -> None:
            if not 1 <= self.n_active <= self.n_experts:
                raise ValueError(f"n_active: {self.n_active} of {self.n_experts} experts; at least 1, at most all")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.width = config.d_ff or 8 * site.d_model // 3
        self.router = Linear(site.d_model, config.n_experts)
        self.gate_up = nn.Parameter(torch.empty(config.n_experts, 2 * self.width, site.d_model))
        self.down = nn.Parameter(torch.empty(config.n_experts, site.d_model, self.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every expert as a gated feedforward alone does."""
        self.router.reset_parameters()
        nn.init.normal_(self.gate_up, std=self.site.d_model**-0.5)
        nn.init.normal_(self.down, std=(2 * self.site.n_layers * self.width) ** -0.5)

    def layouts(self) -> Layouts:
        """Publish the router in gate; experts one by one, or `stacked` in gate_up_proj (E, 2F, C), down_proj (E, C, F).

        One by one they are in experts.N: `separate` as gate_proj, up_proj, down_proj; `numbered` as w1, w3, w2.
        """

        def each(gate: str, up: str, down: str) -> dict[str, Move]:
            names = [f"experts.{number}." for number in range(self.config.n_experts)]
            inner = [(Take(f"{name}{gate}.weight"), Take(f"{name}{up}.weight")) for name in names]
            return {
                "router.weight": Take("gate.weight"),
                "gate_up": Stack(tuple(Concat(pair, (self.width, self.width)) for pair in inner)),
                "down": Stack(tuple(Take(f"{name}{down}.weight") for name in names)),
            }

        whole = {"gate_up": Take("experts.gate_up_proj"), "down": Take("experts.down_proj")}
        return {
            "separate": each("gate_proj", "up_proj", "down_proj"),
            "numbered": each("w1", "w3", "w2"),
            "stacked": {"router.weight": Take("gate.weight"), **whole},
        }

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Change each token of x (B, T, C)."""
        if torch.compiler.is_compiling() or x.is_meta:
            return self.reference(x, context, state)
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self._route(flat)
        order = chosen.flatten().argsort(stable=True)
        tokens = order // self.config.n_active
        counts = chosen.flatten().bincount(minlength=self.config.n_experts).tolist()
        shares = weights.flatten()[order].unsqueeze(1)
        out = torch.zeros_like(flat, dtype=shares.dtype)
        for expert, (rows, share) in enumerate(zip(tokens.split(counts), shares.split(counts), strict=True)):
            if len(rows):
                inner = self._inner(flat[rows] @ self.gate_up[expert].T)
                out = out.index_add(0, rows, (inner @ self.down[expert].T) * share)
        return out.to(x.dtype).reshape(x.shape), state

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute every expert for every token, and sum them with 0 for those that are not taken."""
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self._route(flat)
        none = weights.new_zeros(flat.shape[0], self.config.n_experts)
        shares = none.scatter(1, chosen, weights)
        inner = self._inner(flat.unsqueeze(0) @ self.gate_up.mT)
        out = ((inner @ self.down.mT) * shares.T.unsqueeze(-1)).sum(0)
        return out.to(x.dtype).reshape(x.shape), state

    def _route(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights, fp32 at least, and the experts that each of flat (N, C) takes: (N, n_active) both."""
        scores = at_least_fp32(self._scores(flat)).softmax(-1)
        weights, chosen = scores.topk(self.config.n_active, dim=-1)
        return weights / weights.sum(-1, keepdim=True) if self.config.renormalise else weights, chosen

    def _scores(self, flat: Tensor) -> Tensor:
        # Small differences decide which experts are taken: autocast may not round them. The meta device knows none.
        if flat.is_meta or not torch.is_autocast_enabled(flat.device.type):
            return cast(Tensor, self.router(flat))
        with torch.autocast(flat.device.type, enabled=False):
            return cast(Tensor, self.router(flat.to(self.router.weight.dtype)))

    def _inner(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return activate(self.config.activation, gate) * up
