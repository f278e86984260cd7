"""The block: where norms and residuals stand around its sublayers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from .context import Context
from .norm import Norm
from .position import Position, add_positions
from .state import Memories
from .sublayer import Sublayer

Placement = Literal["pre", "post", "sandwich", "parallel"]
PARTS = ("attention", "cross_attention", "feedforward")


class Block(nn.Module):
    """Run one layer: its sublayers in order, each with its norm and residual.

    `placement`: `pre` x + f(norm(x)); `post` norm(x + f(x)); `sandwich` x + norm(f(norm(x))); `parallel` x + f(norm(x))
    + g(norm(x)), one norm for all sublayers. `norms`: name of a sublayer -> its norm (`after_` of it for the second of
    a sandwich); a missing norm is no norm. `positions`: encodings of this layer alone; None for the stack's.
    """

    def __init__(
        self,
        sublayers: Mapping[str, Sublayer],
        norms: Mapping[str, Norm],
        *,
        placement: Placement = "pre",
        positions: Sequence[Position] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.placement = placement
        self.names = [name for name in PARTS if name in sublayers]
        for name in self.names:
            self.add_module(name, sublayers[name])
        for name, norm in norms.items():
            self.add_module(f"{name}_norm", norm)
        self.positions = None if positions is None else nn.ModuleList(positions)
        self.dropout = dropout

    @property
    def own_positions(self) -> Sequence[Position]:
        """Return the encodings of this layer alone."""
        return cast(Sequence[Position], self.positions)

    def sublayers(self) -> dict[str, Sublayer]:
        """Return the sublayers by name, in the order that they run."""
        return {name: getattr(self, name) for name in self.names}

    def forward(
        self, x: Tensor, contexts: Mapping[str, Context], state: Mapping[str, Memories] | None = None
    ) -> tuple[Tensor, dict[str, Memories]]:
        """Return the changed x (B, T, C) and each sublayer's next state; `contexts` is by sublayer name."""
        if self.positions is not None:
            x = add_positions(x, self.own_positions, contexts["attention"].tokens)
        after: dict[str, Memories] = {}
        parallel = self._norm("shared", x) if self.placement == "parallel" else None
        for name in self.names:
            if parallel is not None:
                source = parallel
            else:
                source = x if self.placement == "post" else self._norm(name, x)
            sublayer: Any = self._modules[name]
            y, kept = sublayer(source, contexts[name], None if state is None else state.get(name))
            if kept is not None:
                after[name] = kept
            if self.placement == "sandwich":
                y = self._norm(f"after_{name}", y)
            if self.dropout:
                y = F.dropout(y, self.dropout, self.training)
            x = x + y
            if self.placement == "post":
                x = self._norm(name, x)
        return x, after

    def _norm(self, name: str, x: Tensor) -> Tensor:
        # Read directly: a lookup through the module or a ModuleDict costs a tiny model a tenth of a decoding step.
        norm: Any = self._modules.get(f"{name}_norm")
        return x if norm is None else norm(x)


def norm_names(placement: Placement, sublayers: Sequence[str]) -> list[str]:
    """Return which norms a block of this placement takes, by the names that `Block` expects."""
    if placement == "parallel":
        return ["shared"]
    return [*sublayers, *(f"after_{name}" for name in sublayers if placement == "sandwich")]
