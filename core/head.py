"""The contract of heads: from hidden states to what an objective compares with its targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from .component import Component, Site
from .embedding import Borrowed, Embedding

_Borrowed = Borrowed  # under another name: the class below takes this one for its own attribute


class Head(nn.Module, Component, ABC):
    """Read logits off hidden states. `per_token`: one row of logits a token, or one a sequence."""

    Borrowed: TypeAlias = _Borrowed

    kind: ClassVar[str] = "head"
    per_token: ClassVar[bool]

    def __init__(self, config: Any, site: Site, embedding: Embedding) -> None:
        """Build the head of a stack that starts with `embedding`, which it may tie to but does not own."""
        super().__init__()
        self.config = config
        self.site = site

    @property
    def pools(self) -> bool:
        """Say whether what it gives a sequence is a vector that stands for it, not scores."""
        return False

    @property
    def reads_all(self) -> bool:
        """Say whether it needs all tokens of a sequence at once: of the later ones alone it gives something else."""
        return not self.per_token

    @abstractmethod
    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits, (B, T, V) per token or (B, V) per sequence, for hidden (B, T, C); mask (B, T): real tokens."""

    @abstractmethod
    def reference(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` of hidden (B, T, C) and mask (B, T) from its definition."""

    @property
    def soft_cap(self) -> float | None:
        """Say how far logits may be from 0, which they near as a tanh does; None where nothing bounds them."""
        return None

    def features(self, hidden: Tensor) -> Tensor:
        """Return what `projection` scores, (..., E), of hidden (..., C): itself, unless a head changes it first."""
        return hidden

    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        """Return weight (V, E) and bias (V,) when logits are `features(hidden) @ weight.T + bias`, else None.

        Where `soft_cap` bounds them, that is what it bounds.
        With them a loss over a large vocabulary is computed in chunks, without all logits at once.
        """
        return None
