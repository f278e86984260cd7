"""The block: where norms and residuals stand around its sublayers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import Context
from .linear import at_least_fp32
from .norm import Norm
from .placement import PLAIN, Placement, Stream, norms_around
from .position import Position, Positions
from .state import Memories
from .sublayer import Sublayer

PARTS = ("attention", "cross_attention", "feedforward", "beside")


class Block(nn.Module):
    """Run one layer: its sublayers in order, each with its norm and residual.

    `placement`: `pre` x + f(norm(x)); `post` norm(x + f(x)); `sandwich` x + norm(f(norm(x))); `parallel` x + f(norm(x))
    + g(norm(x)), one norm for all sublayers; `parallel_norms` the same with a norm for each. `norms`: name of a
    sublayer -> its norm (`after_` of it for the second of a sandwich); a missing norm is no norm. `stream`: how what
    sublayers add joins x. `positions`: encodings of this layer alone; None for the stack's.

    The sublayer `beside` comes last, and reads what the first one did: h + f(norm(x)), say, where h is what the others
    made of x.
    """

    def __init__(
        self,
        sublayers: Mapping[str, Sublayer],
        norms: Mapping[str, Norm],
        *,
        placement: Placement = "pre",
        stream: Stream = PLAIN,
        positions: Sequence[Position] | None = None,
    ) -> None:
        super().__init__()
        self.wide = stream.wide
        self.placement = placement
        self.names = [name for name in PARTS if name in sublayers]
        for name in self.names:
            self.add_module(name, sublayers[name])
        for name, norm in norms.items():
            self.add_module(f"{name}_norm", norm)
        self.positions = None if positions is None else nn.ModuleList(positions)
        self.own_positions = Positions(positions or ())
        self.dropout = stream.dropout
        self.share = 0.5 ** stream.halvings[0]
        self.halves = stream.halvings[1] > stream.halvings[0]
        self._after = stream.residual == "after"
        # By sublayer, whether it reads what the first one did, and its norms: before, after, and after the residual.
        # Read by name from what is registered: a lookup through the module costs a tiny model a tenth of a step.
        there = {f"{name}_norm" for name in norms}
        self._around = [
            (
                name,
                placement in ("parallel", "parallel_norms") or name == "beside",
                [norm if norm in there else None for norm in norms_around(placement, name)],
            )
            for name in self.names
        ]

    def sublayers(self) -> dict[str, Sublayer]:
        """Return the sublayers by name, in the order that they run."""
        return {name: getattr(self, name) for name in self.names}

    def forward(
        self, x: Tensor, contexts: Mapping[str, Context], state: Mapping[str, Memories] | None = None
    ) -> tuple[Tensor, dict[str, Memories]]:
        """Return the changed x (B, T, C) and each sublayer's next state; `contexts` is by sublayer name."""
        if self.positions is not None:
            x = self.own_positions.add(x, contexts["attention"].tokens)
        kept: dict[str, Memories] = {}
        modules: Any = self._modules
        narrow: torch.dtype | None = None
        if self.wide:
            narrow, x = next(self.parameters()).dtype, at_least_fp32(x)
        # What sublayers that stand side by side read: x as it was before any of them changed it.
        start = x if narrow is None else x.to(narrow)
        start = modules["shared_norm"](start) if "shared_norm" in modules else start
        if self._after:
            x = start.to(x.dtype)
        for name, side_by_side, (before, after, outer) in self._around:
            source = start if side_by_side else x if narrow is None else x.to(narrow)
            y = source if before is None else modules[before](source)
            if self._after and before is not None:
                x = y.to(x.dtype)
            y, memories = modules[name](y, contexts[name], None if state is None else state.get(name))
            if memories is not None:
                kept[name] = memories
            if after is not None:
                y = modules[after](y)
            if self.share != 1.0:
                y = y * self.share
            if self.dropout:
                y = F.dropout(y, self.dropout, self.training)
            x = x + y
            if outer is not None:
                x = modules[outer](x)
        return x * 0.5 if self.halves else x, kept
