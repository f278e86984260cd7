"""The table of token vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.component import Site
from ...core.embedding import Embedding, Input


class TokenEmbedding(Embedding):
    """Look tokens up in a learned table."""

    maskable: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """vocab_size: rows of the table. scale: what vectors are multiplied by (sqrt_d_model: Vaswani et al. 2017).

        Where the head is tied, the table starts small, for small logits: `sqrt_d_model` keeps the vectors from drowning
        in what the first layers add to them.
        """

        vocab_size: int
        scale: float | Literal["sqrt_d_model"] = 1.0

        def __post_init__(self) -> None:
            if self.vocab_size < 1:
                raise ValueError(f"vocab_size: {self.vocab_size} is not a number of tokens; at least 1")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.vocab_size = config.vocab_size
        self.scale = site.d_model**0.5 if config.scale == "sqrt_d_model" else config.scale
        self.weight = nn.Parameter(torch.empty(config.vocab_size, site.d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw vectors of norm about 1, so that a tied head starts with small logits."""
        nn.init.normal_(self.weight, std=self.site.d_model**-0.5)

    def inputs(self) -> Mapping[str, Input]:
        """Take `input_ids` (B, T)."""
        return {"input_ids": Input(("batch", "sequence"), "int64", high=self.config.vocab_size)}

    def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """Return the vectors (B, T, C) of input_ids (B, T) int64."""
        x = F.embedding(input_ids, self.weight)
        return x if self.scale == 1.0 else x * self.scale

    def reference(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the same as a product with one-hot rows."""
        rows: Tensor = F.one_hot(input_ids, self.config.vocab_size).to(self.weight.dtype) @ self.weight
        return rows * self.scale

    def table(self) -> Tensor:
        """Return the table (V, C)."""
        return self.weight
