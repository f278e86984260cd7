"""The contract of embeddings: from named raw inputs to vectors, and a module that is used without being owned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from .component import Component, Site
from .inputs import Input

_Input = Input  # under another name: the class below takes this one for its own attribute


class Embedding(nn.Module, Component, ABC):
    """Turn raw inputs into a sequence of vectors, in two steps: positions are added between `forward` and `finish`.

    `maskable`: its columns are those of an attention mask (text); otherwise every column is real (patches).
    `vocab_size`: of the tokens it reads; None when it reads none. `width`: of the vectors that positions are added to.
    """

    Input: TypeAlias = _Input

    kind: ClassVar[str] = "embedding"
    maskable: ClassVar[bool] = False
    vocab_size: int | None = None

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()
        self.config = config
        self.site = site
        self.width: int = site.d_model

    @abstractmethod
    def inputs(self) -> Mapping[str, Input]:
        """Declare the raw inputs by name: the keywords of `forward`. Dimension names: batch, sequence."""

    @abstractmethod
    def forward(self, **inputs: Tensor) -> Tensor:
        """Return (B, T, width) for the declared inputs."""

    @abstractmethod
    def reference(self, **inputs: Tensor) -> Tensor:
        """Compute `forward`, (B, T, width), from its definition."""

    def finish(self, x: Tensor) -> Tensor:
        """Return what the layers read, (B, T, C), of x (B, T, width) with its positions: each token on its own."""
        return x

    def asking(self) -> Tensor:
        """Return what stands in the place of a token that is only asked for: a row of (B, T, width)."""
        raise NotImplementedError(f"{type(self).__name__} has no vector for what is asked for")

    def table(self) -> Tensor:
        """Return the vectors (V, E) that a tied head shares; E may be narrower than C."""
        raise NotImplementedError(f"{type(self).__name__} has no table of tokens")

    def lend(self, site: Site) -> Embedding | Borrowed:
        """Return what reads with this one's weights in another stack, at that stack's site."""
        return Borrowed(self)


class Borrowed:
    """Hold a module that belongs to another, so that its weights are named once, where they are owned."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # while being copied, before it is set
            raise AttributeError(name)
        return getattr(self.module, name)
