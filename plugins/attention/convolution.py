"""A plain convolution over near tokens and their channels, as a mixer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.activation import activate
from ...core.activation_names import Activation
from ...core.attention import Declaration, Mixer, is_exporting
from ...core.component import Site
from ...core.context import Context
from ...core.short_conv import widened
from ...core.state import Declared, Memories, Remembered
from ...core.tokens import Tokens, visible


class ConvolutionAttention(Mixer):
    """Mix the channels of near tokens, with a map for each distance, and activate the sum (Kalchbrenner et al. 2014).

    Causal, it sees the token and `kernel - 1` before it; two-sided, as many on both sides together.
    """

    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {},
        {"kernel": 4, "groups": 3, "activation": "gelu"},
        {"kernel": 1},
    )
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
        """kernel: tokens that it covers. groups: of channels that are mixed apart. activation: of the sum."""

        kernel: int = 3
        groups: int = 1
        activation: Activation = "tanh"

        def __post_init__(self) -> None:
            if self.kernel < 1:
                raise ValueError(f"kernel: {self.kernel} covers no token; at least 1, the token itself")
            if self.groups < 1:
                raise ValueError(f"groups: {self.groups} is not a number of groups; at least 1")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if site.d_model % config.groups:
            raise ValueError(f"groups: {config.groups} groups do not divide {site.d_model} channels evenly")
        self.weight = nn.Parameter(torch.empty(site.d_model, site.d_model // config.groups, config.kernel))
        self.bias = nn.Parameter(torch.empty(site.d_model))
        self.after = 0 if site.causal else config.kernel // 2
        self.before = config.kernel - 1 - self.after
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a kernel that keeps the scale of what it covers."""
        nn.init.normal_(self.weight, std=(self.weight.shape[1] * self.config.kernel) ** -0.5)
        nn.init.zeros_(self.bias)

    def declared(self) -> Declared:
        """Keep the newest inputs, as many as the kernel reaches back."""
        return {"values": Remembered(("batch", self.before, self.site.d_model), "fixed")} if self.before else {}

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return whose values reach whom: those that the kernel covers."""
        back = q.pos.unsqueeze(2) - k.pos.unsqueeze(1)
        return visible(q, k, causal=self.site.causal) & (back <= self.before) & (back >= -self.after)

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Mix with torch's convolution; rows of several documents, and those without tokens, tap by tap."""
        if context.tokens.doc is not None or (not is_exporting() and x.shape[1] == 0):
            return self.reference(x, context, state)
        values, state = self._read(x, context, state)
        mixed = F.conv1d(values.transpose(1, 2), self.weight, self.bias, groups=self.config.groups).transpose(1, 2)
        return activate(self.config.activation, mixed), state

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Sum over the taps of the kernel."""
        values, state = self._read(x, context, state)
        doc = context.tokens.doc
        padded = None if doc is None else F.pad(doc, (self.before, self.after), value=-1)
        groups = self.config.groups
        maps = self.weight.unflatten(0, (groups, -1))  # (G, out, in, taps)
        mixed = self.bias.expand_as(x)
        for tap in range(self.config.kernel):
            here = values[:, tap : tap + x.shape[1]]
            if doc is not None and padded is not None:
                here = here * (padded[:, tap : tap + x.shape[1]] == doc).unsqueeze(-1)
            mixed = mixed + torch.einsum("btgi,goi->btgo", here.unflatten(-1, (groups, -1)), maps[..., tap]).flatten(-2)
        return activate(self.config.activation, mixed), state

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        return "torch conv1d"

    def _read(self, x: Tensor, context: Context, state: Memories | None) -> tuple[Tensor, Memories | None]:
        """Return what the kernel reads, with what it reaches beyond both ends, and the next state."""
        near = None if state is None else state.get("values")
        values, kept = widened(x, context, near, self.before, self.after)
        return values, state if kept is None else {"values": kept}
