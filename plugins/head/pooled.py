"""The head that gives a sequence one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ...core.component import Site
from ...core.embedding import Embedding
from ...core.head import Head
from ...core.pooling import Pool, pooled, pooled_reference


class PooledHead(Head):
    """Pool the hidden states of a sequence into one vector, by which sequences are compared (Reimers et al. 2019)."""

    per_token: ClassVar[bool] = False
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ({"normalise": True}, {"pool": "max"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """pool: the `mean` of real tokens, the `first` or the `last` one, or the `max` of each entry.

        normalise: whether the vector is scaled to length 1, so that products are cosines.
        """

        pool: Pool = "mean"
        normalise: bool = False

    config: Config

    def __init__(self, config: Config, site: Site, embedding: Embedding) -> None:
        super().__init__(config, site, embedding)

    @property
    def pools(self) -> bool:
        """Say that it gives vectors."""
        return True

    @property
    def reads_all(self) -> bool:
        """Say whether it pools more than the last token."""
        return self.config.pool != "last"

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return vectors (B, C) for hidden (B, T, C), mask (B, T); a row without real tokens pools to 0."""
        vector = pooled(self.config.pool, hidden, mask)
        return F.normalize(vector, dim=-1) if self.config.normalise else vector

    def reference(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the same row by row."""
        vector = pooled_reference(self.config.pool, hidden, mask)
        if not self.config.normalise:
            return vector
        return vector / vector.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
