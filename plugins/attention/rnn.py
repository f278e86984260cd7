"""The plain recurrent network, as a mixer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...core.recurrent import Recurrent


class RnnAttention(Recurrent):
    """Carry the tanh of a sum of what came in and what was carried (Elman 1990)."""

    gates: ClassVar[int] = 1
    onnx_op: ClassVar[str] = "RNN"
    onnx_order: ClassVar[tuple[int, ...]] = (0,)

    @staticmethod
    def cell(from_input: Tensor, from_hidden: Tensor, carry: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the next hidden vector, (B, width)."""
        return (torch.tanh(from_input + from_hidden),)

    @staticmethod
    def fused(x: Tensor, carry: Sequence[Tensor], weights: list[Tensor], both: bool) -> tuple[Tensor, ...]:
        """Run torch's kernel."""
        return torch.rnn_tanh(x, carry[0], weights, True, 1, 0.0, False, both, True)
