"""The head that predicts tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.component import Site
from ...core.embedding import Borrowed, Embedding
from ...core.head import Head


class LmHead(Head):
    """Score every token of the vocabulary at each position (tied to the embedding: Press and Wolf 2017)."""

    per_token: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """tied: share the embedding's table. vocab_size: the embedding's when left out. bias: on the logits."""

        tied: bool = False
        vocab_size: int | None = None
        bias: bool = False

    def __init__(self, config: Config, site: Site, embedding: Embedding) -> None:
        super().__init__(config, site, embedding)
        size = config.vocab_size or embedding.vocab_size
        if size is None:
            raise ValueError(f"vocab_size: needed, as embedding {embedding.name!r} reads no tokens")
        if config.tied and size != embedding.vocab_size:
            raise ValueError(f"tied: a head of {size} tokens can't share a table of {embedding.vocab_size or 'none'}")
        self.source = Borrowed(embedding) if config.tied else None
        self.weight = None if config.tied else nn.Parameter(torch.empty(size, site.d_model))
        self.bias = nn.Parameter(torch.empty(size)) if config.bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with small logits."""
        if self.weight is not None:
            nn.init.normal_(self.weight, std=self.site.d_model**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def projection(self) -> tuple[Tensor, Tensor | None]:
        """Return the table (V, C), the embedding's when tied, and the bias."""
        table = self.source.table() if self.source is not None else self.weight
        assert isinstance(table, Tensor)
        return table, self.bias

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits (B, T, V) for hidden (B, T, C)."""
        return F.linear(hidden, *self.projection())

    def reference(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the same as an explicit sum over the width."""
        table, bias = self.projection()
        logits = torch.einsum("btc,vc->btv", hidden, table)
        return logits if bias is None else logits + bias
