"""The feedforward of RWKV, which reads the token before too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.activation import activate
from ...core.component import Site
from ...core.context import Context
from ...core.feedforward import FeedForward
from ...core.linear import Linear
from ...core.moves import Layouts, Reshape, Take
from ...core.shift import mixed, shifted
from ...core.state import Declared, Memories, Remembered


class RwkvFeedForward(FeedForward):
    """Widen, square the relu and narrow a mix of each token with the one before, gated by another (Peng et al. 2023).

    With k and r = s x_t + (1 - s) x_(t-1), each with its own s per channel: sigmoid(W_r r) * W_v relu(W_k k)^2.
    """

    mixes_tokens: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """d_ff: the inner width (4 * d_model when left out)."""

        d_ff: int | None = None

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        width = config.d_ff or 4 * site.d_model
        self.mix_key = nn.Parameter(torch.empty(site.d_model))
        self.mix_receptance = nn.Parameter(torch.empty(site.d_model))
        self.key = Linear(site.d_model, width)
        self.receptance = Linear(site.d_model, site.d_model)
        self.value = Linear(width, site.d_model, gain=(2 * site.n_layers) ** -0.5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with shares of the token itself that grow from channel to channel, more slowly in later layers."""
        rank = torch.arange(self.site.d_model) / self.site.d_model
        for share in (self.mix_key, self.mix_receptance):
            with torch.no_grad():
                share.copy_(rank ** (1 - (self.site.layer - 1) / self.site.n_layers))

    def layouts(self) -> Layouts:
        """Publish `plain`: time_mix_key and time_mix_receptance (1, 1, C), key, receptance, value."""
        size = self.site.d_model
        names = ("key", "receptance")
        return {"plain": {f"mix_{n}": Reshape(Take(f"time_mix_{n}"), (1, 1, size), (size,)) for n in names}}

    def declared(self) -> Declared:
        """Keep the newest token."""
        return {"last": Remembered(("batch", self.site.d_model), "fixed")}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Change each token of x (B, T, C), with the one before it."""
        before, last = shifted(x, context, None if state is None else state["last"])
        value = self.value(activate("relu2", self.key(mixed(x, before, self.mix_key))))
        gate = torch.sigmoid(self.receptance(mixed(x, before, self.mix_receptance)))
        return gate * value, None if state is None else {"last": last}

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute the same token by token."""
        doc, count = context.tokens.doc, context.length
        last = x.new_zeros(x.shape[0], x.shape[2]) if state is None else state["last"]
        outputs = []
        for t in range(x.shape[1]):
            here = x[:, t]
            if doc is not None and t:
                last = torch.where((doc[:, t] == doc[:, t - 1])[:, None], last, 0.0)
            key = self.mix_key * here + (1 - self.mix_key) * last
            receptance = self.mix_receptance * here + (1 - self.mix_receptance) * last
            inner = torch.relu(key @ self.key.weight.T) ** 2
            outputs.append(torch.sigmoid(receptance @ self.receptance.weight.T) * (inner @ self.value.weight.T))
            last = here if count is None else torch.where((t < count)[:, None], here, last)
        y = torch.stack(outputs, dim=1) if outputs else x
        return y, None if state is None else {"last": last}
