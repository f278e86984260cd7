"""The projection that components share: a linear map whose first weights keep the scale of what passes through."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
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


class Fused(Linear):
    """Map (..., in) to parts side by side, (..., sum of `sizes`), in one product, with a bias on some of them.

    `biased`: whether each part has one; `bias` holds the rows of those that have, None where none has.
    """

    def __init__(self, in_features: int, sizes: Sequence[int], biased: Sequence[bool]) -> None:
        self.parts = tuple(zip(sizes, biased, strict=True))
        super().__init__(in_features, sum(sizes), bias=all(biased))
        self.partly = any(biased) and not all(biased)
        if self.partly:
            self.bias = nn.Parameter(torch.zeros(sum(size for size, has in self.parts if has)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., sum of sizes) of x (..., in)."""
        if not self.partly:
            return F.linear(x, self.weight, self.bias)
        rows = iter(self.bias.split([size for size, has in self.parts if has]))
        whole = [next(rows) if has else self.bias.new_zeros(size) for size, has in self.parts]
        return F.linear(x, self.weight, torch.cat(whole))

    def alone(self, part: int, x: torch.Tensor) -> torch.Tensor:
        """Return one part, (..., its size), of x (..., in)."""
        first = sum(size for size, _ in self.parts[:part])
        size, has = self.parts[part]
        weight = self.weight.narrow(0, first, size)
        if self.bias is None or not has:
            return F.linear(x, weight)
        return F.linear(x, weight, self.bias.narrow(0, sum(size for size, has in self.parts[:part] if has), size))


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """Return x in fp32, or in fp64 when it already is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def computed_in(x: torch.Tensor) -> torch.dtype:
    """Return the dtype that products of x are computed in: that of autocast where it is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if not x.is_meta and torch.is_autocast_enabled(kind) else x.dtype


def exactly(x: torch.Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast rounds nothing of what is computed where x is."""
    # The meta device knows no autocast.
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
