"""The contract of feedforwards: the sublayer that changes each token on its own, unless it declares otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from .component import Site
from .context import Context
from .state import Memories
from .sublayer import Sublayer


class FeedForward(Sublayer, ABC):
    """Change each token's vector. `mixes_tokens` declares that neighbours take part."""

    kind: ClassVar[str] = "feedforward"
    mixes_tokens: ClassVar[bool] = False

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()
        self.config = config
        self.site = site

    @abstractmethod
    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute `forward` of x (B, T, C) from its definition."""
