"""The long short-term memory, as a mixer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.recurrent import Recurrent


class LstmAttention(Recurrent):
    """Carry a cell that gates write to, keep and read (Hochreiter and Schmidhuber 1997; forget gate: Gers 2000)."""

    gates: ClassVar[int] = 4
    carries: ClassVar[tuple[str, ...]] = ("h", "c")
    onnx_op: ClassVar[str] = "LSTM"
    onnx_order: ClassVar[tuple[int, ...]] = (0, 3, 1, 2)

    def reset_parameters(self) -> None:
        """Draw first weights, and open the forget gate, so that early gradients reach far back (Jozefowicz 2015)."""
        super().reset_parameters()
        for way in self.directions:
            nn.init.ones_(self.weights[f"{way}_hidden_bias"][self.width : 2 * self.width])

    @staticmethod
    def cell(from_input: Tensor, from_hidden: Tensor, carry: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the next hidden vector and cell, each (B, width)."""
        write, keep, new, read = (from_input + from_hidden).chunk(4, dim=-1)
        cell = torch.sigmoid(keep) * carry[1] + torch.sigmoid(write) * torch.tanh(new)
        return torch.sigmoid(read) * torch.tanh(cell), cell

    @staticmethod
    def fused(x: Tensor, carry: Sequence[Tensor], weights: list[Tensor], both: bool) -> tuple[Tensor, ...]:
        """Run torch's kernel; on a CPU in the weights' precision, as not every processor has that kernel in bf16."""
        with torch.autocast("cpu", enabled=False):
            inner, *state = (t.to(weights[0].dtype) if t.is_cpu else t for t in (x, *carry))
            return torch.lstm(inner, state, weights, True, 1, 0.0, False, both, True)
