"""The norm of what a recurrence gives, gated by a branch beside it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import at_least_fp32


class GatedNorm(nn.Module):
    """Bring each group of `size` entries to a root mean square of 1, and multiply by silu of a gate (Gu and Dao 2023).

    `gate_first`: whether the gate is multiplied in before the norm, or after it.
    """

    def __init__(self, width: int, size: int, *, eps: float, gate_first: bool) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.gate_first = gate_first
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the plain normalization."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Normalize x (..., width), of the same dtype at the end; computed in fp32 at least."""
        wide, weight, opened = at_least_fp32(x), at_least_fp32(self.weight), F.silu(at_least_fp32(gate))
        if self.gate_first:
            wide = wide * opened
        if self.size == len(weight):
            y = F.rms_norm(wide, (self.size,), weight, self.eps)
        else:
            # A graph would make a weight of its own as large as x, of a shape that it takes for other layers' too.
            plain = wide.new_ones(self.size) if torch.compiler.is_exporting() else None
            y = F.rms_norm(wide.unflatten(-1, (-1, self.size)), (self.size,), plain, self.eps).flatten(-2) * weight
        return (y if self.gate_first else y * opened).to(x.dtype)

    def reference(self, x: Tensor, gate: Tensor) -> Tensor:
        """Compute the same from its definition."""
        opened = gate * torch.sigmoid(gate)
        x = x * opened if self.gate_first else x
        grouped = x.unflatten(-1, (-1, self.size))
        y: Tensor = (grouped / torch.sqrt(grouped.square().mean(-1, keepdim=True) + self.eps)).flatten(-2) * self.weight
        return y if self.gate_first else y * opened
