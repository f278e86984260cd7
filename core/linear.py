"""The projection that components share: a linear map whose first weights keep the scale of what passes through."""

from __future__ import annotations

import torch
from torch import nn


class Linear(nn.Linear):
    """Map (..., in) to (..., out); weights start normal with deviation `gain / sqrt(in)`, biases at 0.

    A `gain` of `1 / sqrt(2 * n_layers)` on the maps that write to the residual stream keeps its variance near 1 at
    every depth (Radford et al. 2019).
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False, gain: float = 1.0) -> None:
        self.gain = gain
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the first weights."""
        nn.init.normal_(self.weight, std=self.gain * self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """Return x in fp32, or in fp64 when it already is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
