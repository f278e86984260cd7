"""What whoever runs a pass is shown of it, or has a say in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .choice import Choices


@dataclass(frozen=True, eq=False)
class Watch:
    """Hold what a pass shows.

    `weights`: attention weights (B, H, T, S) are appended here, layer by layer; None where nobody asks. `choices`:
    records what attentions choose by content, or says what they choose; None where they choose alone.
    """

    weights: list[Tensor] | None = None
    choices: Choices | None = None

    @staticmethod
    def over(attentions: bool) -> Watch:
        """Return what shows the weights of attentions, or nothing."""
        return Watch([]) if attentions else UNWATCHED

    @property
    def shown(self) -> tuple[Tensor, ...] | None:
        """Return the weights that came to light, each layer's (B, H, T, S); None where nobody asked."""
        return None if self.weights is None else tuple(self.weights)


UNWATCHED = Watch()
