"""The contract of feedforwards: the sublayer that changes each token on its own, unless it declares otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .component import Site
from .context import Context
from .state import Memories
from .sublayer import Sublayer

Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "relu2", "tanh"]


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


def activate(name: Activation, x: Tensor) -> Tensor:
    """Return the named activation of x, elementwise.

    `relu2` is relu squared (So et al. 2021); `quick_gelu` x * sigmoid(1.702 x), a gelu by a logistic (Hendrycks and
    Gimpel 2016).
    """
    match name:
        case "relu":
            return F.relu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case "silu":
            return F.silu(x)
        case "relu2":
            return F.relu(x).square()
        case "tanh":
            return torch.tanh(x)
