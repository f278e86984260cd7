"""A gated convolution over the last few tokens, as a mixer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.attention import Declaration, Mixer
from ...core.component import Site
from ...core.context import Context
from ...core.linear import Linear
from ...core.short_conv import convolved, tapped, widened
from ...core.state import Declared, Memories, Remembered
from ...core.tokens import Tokens, visible


class ConvAttention(Mixer):
    """Convolve each channel over near tokens and gate it by the token itself (Dauphin et al. 2017, per channel).

    Causal, it sees the token and `kernel - 1` before it; two-sided, as many on both sides together.
    """

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "compile"}),
        ignores=frozenset({"rotate"}),
        lacks={
            "score": "its weights belong to distances, and no pair of tokens ever has a score",
            "cross": "a kernel slides along one sequence, and a memory is another",
            "pairs": "its weights belong to distances, and a kernel slides along columns",
        },
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """kernel: tokens that a convolution covers."""

        kernel: int = 4

        def __post_init__(self) -> None:
            if self.kernel < 1:
                raise ValueError(f"kernel: {self.kernel} covers no token; at least 1, the token itself")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.up = Linear(site.d_model, 2 * site.d_model)
        self.weight = nn.Parameter(torch.empty(site.d_model, config.kernel))
        self.out = Linear(site.d_model, site.d_model, gain=(2 * site.n_layers) ** -0.5)
        self.after = 0 if site.causal else config.kernel // 2
        self.before = config.kernel - 1 - self.after
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a kernel that keeps the scale of what it covers."""
        nn.init.normal_(self.weight, std=self.config.kernel**-0.5)

    def declared(self) -> Declared:
        """Keep the newest values, as many as the kernel reaches back."""
        return {"values": Remembered(("batch", self.before, self.site.d_model), "fixed")} if self.before else {}

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return whose values reach whom: those that the kernel covers."""
        back = q.pos.unsqueeze(2) - k.pos.unsqueeze(1)
        return visible(q, k, causal=self.site.causal) & (back <= self.before) & (back >= -self.after)

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Mix with torch's convolution; rows of several documents, and those without tokens, tap by tap."""
        wide, gate, state = self._read(x, context, state)
        return self.out(convolved(wide, self.weight, None, context, self.before) * F.silu(gate)), state

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Sum over the taps of the kernel."""
        wide, gate, state = self._read(x, context, state)
        return self.out(tapped(wide, self.weight, None, context, self.before) * F.silu(gate)), state

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        return "torch conv1d"

    def _read(self, x: Tensor, context: Context, state: Memories | None) -> tuple[Tensor, Tensor, Memories | None]:
        """Return values with what the kernel reaches beyond both ends, gates, and the next state."""
        values, gate = self.up(x).chunk(2, dim=-1)
        near = None if state is None else state.get("values")
        wide, kept = widened(values, context, near, self.before, self.after)
        return wide, gate, state if kept is None else {"values": kept}
