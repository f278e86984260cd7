"""The contract of normalizations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from .component import Component, Site


class Norm(nn.Module, Component, ABC):
    """Bring the last dimension to a common scale, each token on its own.

    Built as `cls(config, site)` for vectors of width `site.d_model`.
    """

    kind: ClassVar[str] = "norm"

    @abstractmethod
    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., C); shape and dtype stay."""

    @abstractmethod
    def reference(self, x: Tensor) -> Tensor:
        """Compute the same from its definition."""
