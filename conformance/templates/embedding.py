"""A table of token vectors that is stored as a product of two smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.core import Embedding, Linear, Site


class NewEmbedding(Embedding):
    """Look tokens up in a narrow table and widen what is found (Lan et al. 2020, "ALBERT")."""

    maskable: ClassVar[bool] = True  # it reads text, whose rows may be padded

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """vocab_size: rows of the table. rank: its width."""

        vocab_size: int
        rank: int = 16

        def __post_init__(self) -> None:
            for name in ("vocab_size", "rank"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name}: {getattr(self, name)} is too small; at least 1")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.vocab_size = config.vocab_size
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.rank))
        self.up = Linear(config.rank, site.d_model, gain=site.d_model**-0.5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a table whose widened vectors have a norm of about 1, so that a tied head starts with small logits."""
        nn.init.normal_(self.weight)

    def inputs(self) -> Mapping[str, Embedding.Input]:
        """Take `input_ids` (B, T)."""
        return {"input_ids": Embedding.Input(("batch", "sequence"), "int64", high=self.config.vocab_size)}

    def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """Return the vectors (B, T, C) of input_ids (B, T) int64."""
        x: Tensor = self.up(F.embedding(input_ids, self.weight))
        return x

    def reference(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the same as a product of one-hot rows with the whole table."""
        return F.one_hot(input_ids, self.config.vocab_size).to(self.weight.dtype) @ self.table()

    def table(self) -> Tensor:
        """Return the vectors of all tokens (V, C), for a head that is tied to them."""
        return self.weight @ self.up.weight.T
