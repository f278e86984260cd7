"""A head that predicts tokens with logits that can't run away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from transom.core import Embedding, Head, Linear, Site


class NewHead(Head):
    """Score every token of the vocabulary and bend the logits below a cap, by cap * tanh(logits / cap) (Gemma 2, 2024).

    A head whose logits are a plain product gives its weight in `projection`, and a loss is then computed in chunks that
    never hold all logits; the bend makes that impossible here.
    """

    per_token: ClassVar[bool] = True  # a row of logits for each token, not one for a whole sequence

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """cap: what no logit exceeds. vocab_size: the embedding's when left out."""

        cap: float = 30.0
        vocab_size: int | None = None

        def __post_init__(self) -> None:
            if self.cap <= 0.0:
                raise ValueError(f"cap: {self.cap} leaves no logits; above 0")

    def __init__(self, config: Config, site: Site, embedding: Embedding) -> None:
        super().__init__(config, site, embedding)
        size = config.vocab_size or embedding.vocab_size
        if size is None:
            raise ValueError(f"vocab_size: needed, as embedding {embedding.name!r} reads no tokens")
        self.out = Linear(site.d_model, size)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits (B, T, V) for hidden (B, T, C); mask (B, T) is of no use where each token has its own."""
        logits: Tensor = torch.tanh(self.out(hidden) / self.config.cap) * self.config.cap
        return logits

    def reference(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the same as an explicit sum over the width, and tanh from exponentials."""
        bent = torch.einsum("btc,vc->btv", hidden, self.out.weight) / self.config.cap
        logits: Tensor = (1.0 - 2.0 / (torch.exp(2.0 * bent) + 1.0)) * self.config.cap
        return logits
