"""The gated recurrent unit, as a mixer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.recurrent import Recurrent


class GruAttention(Recurrent):
    """Carry a gated mean of what was carried and something new (Cho et al. 2014); the reset follows the product."""

    gates: ClassVar[int] = 3
    onnx_op: ClassVar[str] = "GRU"
    onnx_order: ClassVar[tuple[int, ...]] = (1, 0, 2)

    @staticmethod
    def cell(from_input: Tensor, from_hidden: Tensor, carry: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the next hidden vector, (B, width)."""
        reset_x, keep_x, new_x = from_input.chunk(3, dim=-1)
        reset_h, keep_h, new_h = from_hidden.chunk(3, dim=-1)
        keep = torch.sigmoid(keep_x + keep_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return (keep * carry[0] + (1 - keep) * new,)

    @staticmethod
    def fused(x: Tensor, carry: Sequence[Tensor], weights: list[Tensor], both: bool) -> tuple[Tensor, ...]:
        """Run torch's kernel."""
        return torch.gru(x, carry[0], weights, True, 1, 0.0, False, both, True)

    def onnx_attrs(self) -> dict[str, Any]:
        """Place the reset behind the product, as torch does."""
        return {"linear_before_reset": 1}
