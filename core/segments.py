"""What is kept of a text that is read segment by segment: the newest tokens of earlier segments, and no more."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .state import PAST, Declared, State
from .tokens import Packing


@dataclass(frozen=True)
class Segments:
    """Keep what layers append, for the next segment to see (Dai et al. 2019).

    `length`: the newest tokens that are kept, of each row; None for all. `reuse`: how many first tokens of a segment
    are kept, which the next segment follows; None for all. No gradient goes back to an earlier segment.
    """

    length: int | None
    reuse: int | None

    def declared(self, declared: Declared) -> Declared:
        """Return a stack's declared state as it is kept: of a fixed size where a length is set."""
        if self.length is None:
            return declared
        return {
            name: replace(rule, dims=tuple(self.length if dim == PAST else dim for dim in rule.dims), grows="fixed")
            if rule.grows == "append"
            else rule
            for name, rule in declared.items()
        }

    def empty(self, declared: Declared, batch: int, like: Tensor) -> State:
        """Return the state before the first segment; `declared` is the stack's, `like` gives dtype and device."""
        kept = self.declared(declared)
        tensors = {name: rule.empty(batch, 0, like.dtype, like.device) for name, rule in kept.items()}
        return State(tensors, self.length or 0, self.length or 0)

    def cut(self, declared: Declared, before: State, after: State) -> State:
        """Return what is kept of the state `after` a segment, `before` which another was.

        Marks of tokens are 0 from then on: they tell the parts of one segment apart.
        """
        tensors = {name: tensor.detach() for name, tensor in after.tensors.items()}
        kept = tensors["pos"] >= 0
        if self.reuse is not None:
            tensors["seen"] = torch.minimum(after.seen, before.seen + self.reuse)
            kept = kept & (tensors["pos"] < tensors["seen"].unsqueeze(1))
        tensors["pos"] = tensors["pos"].masked_fill(~kept, -1)
        tensors |= {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if name.startswith("marks.")}
        if self.length is None:
            return State(tensors, after.columns, after.padded if self.reuse is None else after.columns)
        newest = torch.arange(self.length, device=kept.device) + (kept.sum(1, keepdim=True) - self.length)
        columns = Packing.of(kept).order.gather(1, newest.clamp(min=0))
        for name, rule in declared.items():
            if rule.grows == "append":
                tensors[name] = _taken(tensors[name], columns, rule.dims.index(PAST))
        tensors["pos"] = tensors["pos"].masked_fill(newest < 0, -1)
        return State(tensors, self.length, self.length)


def _taken(x: Tensor, columns: Tensor, dim: int) -> Tensor:
    """Return columns (B, N) of x (B, ..., S, ...), where S stands at `dim`."""
    x = x.movedim(dim, 1)
    spread = columns.reshape(columns.shape + (1,) * (x.dim() - 2))
    return x.gather(1, spread.expand(columns.shape + x.shape[2:])).movedim(1, dim)
