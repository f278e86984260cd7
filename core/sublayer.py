"""The contract of what stands in a block: from (B, T, C) to (B, T, C), with a declared state."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from .component import Component
from .context import Context
from .state import Declared, Memories


class Sublayer(nn.Module, Component, ABC):
    """Change a sequence, and remember what the next step needs.

    Attention shells, mixers and feedforwards are sublayers; any of them may remember.
    """

    def declared(self) -> Declared:
        """Declare the state: name -> `Remembered`. Nothing, unless a sublayer says so."""
        return {}

    def prime(self, context: Context) -> Memories:
        """Return the state that is computed once from `context.memory` (B, M, C): the tensors declared `static`."""
        return {}

    @abstractmethod
    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Return the changed x (B, T, C) and the next state; None in, None out.

        Padding columns of x hold finite values that may not reach real tokens; what comes out of them is of no
        consequence. The state that came in is left as it was.
        """
