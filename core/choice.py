"""What an attention chooses by content: where it looks then depends on numbers, and a rounding may decide.

A choice jumps where numbers pass each other, so that two paths of one attention, or two precisions, are comparable only
where they choose alike. What one chose is recorded, and another is made to choose the same, and says what it loses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .linear import at_least_fp32


class Choices:
    """Record what the attentions of a pass choose, one after another; or have them choose what others chose.

    `given`: the choices to take, one for each that is made, in order; none: each takes its own.
    `chosen`: the choices taken, (B, T, ..., N) int64 each. `lost`: what each costs whose queries would have chosen
    otherwise, (B, T, ...) each: by how much it scores less than the best, relative to the best one's largest score; 0
    where both are the same, and at padding.
    """

    def __init__(self, given: Sequence[Tensor] = ()) -> None:
        self.chosen: list[Tensor] = []
        self.lost: list[Tensor] = []
        self._given = list(given)

    def settle(self, best: Tensor, score: Callable[[Tensor], Tensor], valid: Tensor | None) -> Tensor:
        """Return the choice to take in place of `best` (B, T, ..., N) int64, -1 for none, as `Context.choose` says.

        `valid` (B, T) bool: which queries are real; None for all.
        """
        if not self._given:
            self.chosen.append(best)
            return best
        taken = self._given[len(self.chosen)]
        self.chosen.append(taken)
        self.lost.append(_lost(best, taken, score, valid))
        return taken


@torch.no_grad()
def _lost(best: Tensor, taken: Tensor, score: Callable[[Tensor], Tensor], valid: Tensor | None) -> Tensor:
    """Return how much less `taken` scores than `best`, (B, T, ...)."""
    most, got = (at_least_fp32(score(each.clamp(min=0))).masked_fill(each < 0, 0.0) for each in (best, taken))
    unlike = (best.sort(-1).values != taken.sort(-1).values).any(-1)
    size = most.abs().amax(-1).clamp(min=torch.finfo(most.dtype).tiny)
    lost = torch.where(unlike, (most.sum(-1) - got.sum(-1)).abs() / size, 0.0)
    # One that scores alike is another choice still: it is counted, as a tie.
    lost = torch.where(unlike, lost.clamp(min=torch.finfo(lost.dtype).tiny), lost)
    if valid is not None:
        lost = lost.masked_fill(~valid.reshape(valid.shape + (1,) * (lost.dim() - 2)), 0.0)
    return lost
