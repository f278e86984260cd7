"""Which experts a token takes, and how much of each: scores, groups, and a bias that only choosing knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear, at_least_fp32


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Say how a router scores and chooses.

    score: what makes weights of its outputs; a `sigmoid` scores each expert on its own (DeepSeek-AI 2024). n_groups:
    into how many groups of neighbours the experts fall. n_active_groups: from how many of them, those whose best two
    experts score highest, a token takes its own. selection_bias: whether a number for each expert is added to its score
    for choosing alone; it is kept with the weights and learned by no gradient (Wang et al. 2024). scale: what the
    weights are multiplied by at last.
    """

    score: Literal["softmax", "sigmoid"] = "softmax"
    n_groups: int = 1
    n_active_groups: int = 1
    selection_bias: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.n_active_groups <= self.n_groups:
            raise ValueError(
                f"n_active_groups: {self.n_active_groups} of {self.n_groups} groups; at least 1, at most all"
            )

    def check(self, n_experts: int, n_active: int) -> None:
        """Raise ValueError unless experts fall into these groups, and a token finds `n_active` in those it may take."""
        if n_experts % self.n_groups:
            raise ValueError(f"n_groups: {self.n_groups} groups do not divide {n_experts} experts evenly")
        if n_active > (there := n_experts // self.n_groups * self.n_active_groups):
            raise ValueError(
                f"n_active_groups: {self.n_active_groups} groups have {there} experts, fewer than {n_active}"
            )


class Router(Linear):
    """Choose `n_active` of `n_experts` for each token, and weigh them.

    `renormalise`: whether weights are scaled to a sum of 1, before `routing.scale`.
    """

    selection_bias: Tensor

    def __init__(self, d_model: int, n_experts: int, n_active: int, renormalise: bool, routing: Routing) -> None:
        self.n_active = n_active
        self.renormalise = renormalise
        self.routing = routing
        super().__init__(d_model, n_experts)
        if routing.selection_bias:
            self.register_buffer("selection_bias", torch.zeros(n_experts))

    def reset_parameters(self) -> None:
        """Draw the first weights; the bias starts at 0."""
        super().reset_parameters()
        if "selection_bias" in self._buffers:
            nn.init.zeros_(self.selection_bias)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights, fp32 at least, and the experts that each of x (N, C) takes: (N, n_active) both."""
        scores = self._scores(x)
        scores = scores.softmax(-1) if self.routing.score == "softmax" else scores.sigmoid()
        ranked = scores
        if self.routing.selection_bias:
            ranked = ranked + at_least_fp32(self.selection_bias)
        if self.routing.n_active_groups < self.routing.n_groups:
            ranked = self._within_groups(ranked)
        chosen = ranked.topk(self.n_active, dim=-1).indices
        weights = scores.gather(1, chosen)
        if self.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.routing.scale, chosen

    def _scores(self, x: Tensor) -> Tensor:
        # Small differences decide which experts are taken: neither autocast nor narrow weights may round them. The
        # meta device knows no autocast.
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return F.linear(at_least_fp32(x), at_least_fp32(self.weight))
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(at_least_fp32(x), at_least_fp32(self.weight))

    def _within_groups(self, ranked: Tensor) -> Tensor:
        """Return scores (N, E) with those of all groups but the best at minus infinity."""
        grouped: Tensor = ranked.unflatten(-1, (self.routing.n_groups, -1))
        best = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        taken = best.topk(self.routing.n_active_groups, dim=-1).indices
        shut = torch.ones_like(best).scatter(1, taken, 0.0) > 0
        ranked = grouped.masked_fill(shut.unsqueeze(-1), float("-inf"))
        return ranked.flatten(-2)
