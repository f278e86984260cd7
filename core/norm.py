"""The contract of normalizations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from .component import Component, Site
from .moves import Layouts, Take


class Norm(nn.Module, Component, ABC):
    """Bring the last dimension to a common scale, each token on its own.

    Built as `cls(config, site)` for vectors of width `site.d_model`.
    """

    kind: ClassVar[str] = "norm"

    @abstractmethod
    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()

    def layouts(self) -> Layouts:
        """Publish `plain`: weight and bias; or `gamma`: the same as gamma and beta, as older checkpoints name them."""
        older = {"weight": "gamma", "bias": "beta"}
        return {"plain": {}, "gamma": {name: Take(older[name]) for name in self.state_dict() if name in older}}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., C); shape and dtype stay."""

    @abstractmethod
    def reference(self, x: Tensor) -> Tensor:
        """Compute the same of x (..., C) from its definition."""
