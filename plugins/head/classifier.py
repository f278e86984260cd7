"""The head that names a whole sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...core.component import Site
from ...core.embedding import Embedding
from ...core.feedforward import Activation, activate
from ...core.head import Head
from ...core.linear import Linear


class ClassifierHead(Head):
    """Pool the hidden states of a sequence and score its classes."""

    per_token: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """n_classes: what there is to choose from; 1 for one score, by which several sequences are compared; null for
        no scores: what is pooled is itself the answer, (B, C).

        pool: the `mean` of real tokens, the `first` or the `last` one. transform: map what is pooled and activate it
        first (tanh: the pooler of Devlin et al. 2019).
        """

        n_classes: int | None
        pool: Literal["mean", "first", "last"] = "mean"
        transform: Activation | None = None

        def __post_init__(self) -> None:
            if self.n_classes is not None and self.n_classes < 1:
                raise ValueError(f"n_classes: {self.n_classes} leaves nothing to score; at least 1")

    config: Config

    def __init__(self, config: Config, site: Site, embedding: Embedding) -> None:
        super().__init__(config, site, embedding)
        self.transform = Linear(site.d_model, site.d_model, bias=True) if config.transform is not None else None
        self.out = None if config.n_classes is None else Linear(site.d_model, config.n_classes, bias=True)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits (B, n_classes) for hidden (B, T, C), mask (B, T); without real tokens a row pools to 0."""
        return self._scores(torch.einsum("bt,btc->bc", self._share(hidden, mask), hidden))

    def reference(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the same row by row."""
        rows = []
        for i in range(hidden.shape[0]):
            real = hidden[i] if mask is None else hidden[i][mask[i].bool()]
            if len(real) == 0:
                rows.append(hidden.new_zeros(hidden.shape[-1]))
            elif self.config.pool == "mean":
                rows.append(real.mean(0))
            else:
                rows.append(real[0 if self.config.pool == "first" else -1])
        return self._scores(torch.stack(rows))

    def _scores(self, pooled: Tensor) -> Tensor:
        if self.transform is not None and self.config.transform is not None:
            pooled = activate(self.config.transform, self.transform(pooled))
        logits: Tensor = pooled if self.out is None else self.out(pooled)
        return logits

    def _share(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return how much of each token is pooled, (B, T)."""
        real = hidden.new_ones(hidden.shape[:2]) if mask is None else mask.to(hidden.dtype)
        if self.config.pool == "mean":
            return real / real.sum(1, keepdim=True).clamp(min=1)
        rank = real.cumsum(1) if self.config.pool == "first" else real.flip(1).cumsum(1).flip(1)
        return real * (rank == 1)
