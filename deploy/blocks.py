"""Round matrices to a few bits, a block of a column at a time, so that the error of each block is least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHRUNK = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79)
"""Parts of a block's range that are tried: a smaller one rounds the many finer and cuts off the few."""
CHUNK = 1 << 18  # weights that are rounded at once, so that what is tried stays in the cache


@dataclass(frozen=True)
class Grid:
    """Say which values the weights of a block can have: `2**bits` of them, `block_size` weights to one scale.

    `symmetric`: whether the middle one is 0, or each block has a zero point of its own.
    """

    bits: int
    block_size: int
    symmetric: bool

    @property
    def top(self) -> int:
        """Return the largest code."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """Return the code that stands for 0 where blocks have no zero point."""
        return int(2 ** (self.bits - 1))


@dataclass(frozen=True)
class Rounded:
    """Hold a matrix (K, N) in codes (N, K / block_size, block_size), K padded: a weight is `scale * (code - zero)`.

    `scales`, `zeros`: (N, K / block_size), fp32 and whole.
    """

    grid: Grid
    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def values(self, rows: int) -> Tensor:
        """Return the matrix (K, N) that the codes stand for."""
        return ((self.codes - self.zeros[..., None]) * self.scales[..., None]).flatten(1)[:, :rows].T

    def packed(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
        """Return codes, scales and zero points as MatMulNBits takes them: several codes to a byte, the first lowest.

        Codes are (N, K / block_size, bytes of a block), zero points (N, bytes), None where symmetric.
        """
        zeros = None if self.grid.symmetric else _packed(self.zeros, self.grid)
        return _packed(self.codes, self.grid), self.scales.numpy(), zeros


def _packed(codes: Tensor, grid: Grid) -> NDArray[np.uint8]:
    each = 8 // grid.bits
    spare = -codes.shape[-1] % each
    whole = torch.nn.functional.pad(codes, (0, spare), value=grid.middle).to(torch.uint8)
    parts = whole.unflatten(-1, (-1, each))
    packed = parts[..., 0].contiguous()
    for place in range(1, each):
        packed |= parts[..., place] << (grid.bits * place)
    bytes_: NDArray[np.uint8] = packed.numpy()
    return bytes_


def in_blocks(weight: Tensor, grid: Grid) -> Tensor:
    """Return a matrix (K, N) as (N, K / block_size, block_size), padded with zeros."""
    columns: Tensor = torch.nn.functional.pad(weight.T.float(), (0, -weight.shape[0] % grid.block_size))
    return columns.view(len(columns), -1, grid.block_size)


def round_blocks(weight: Tensor, grid: Grid) -> Rounded:
    """Round a matrix (K, N) to the nearest codes, with the scales that make the squared error of each block least."""
    blocks = in_blocks(weight, grid)
    flat = blocks.flatten(0, 1)
    found = [best_codes(part, grid) for part in flat.split(max(1, CHUNK // grid.block_size))]
    codes, scales, zeros = (torch.cat(each) for each in zip(*found, strict=True))
    shape = blocks.shape[:2]
    return Rounded(grid, codes.view(*shape, -1), scales.view(shape), zeros.view(shape))


def codes_of(blocks: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Tensor:
    """Return the codes nearest to blocks (..., block_size) for their scales and zero points (...)."""
    inverse = torch.where(scales == 0, 0.0, 1.0 / scales)
    return (blocks * inverse[..., None]).round_().add_(zeros[..., None]).clamp_(0, grid.top)


def best_codes(blocks: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales and zero points of blocks (n, block_size): the best of those that are tried."""
    full, zeros = _ranges(blocks, grid)
    best = _tried(blocks, full, zeros, grid)
    for part in SHRUNK[1:]:
        best = _better(best, _tried(blocks, full * part, zeros, grid))
    for shift in (0,) if grid.symmetric else (-1, 1, 0):
        moved = (best[2] + shift).clamp(0, grid.top)
        best = _better(best, _tried(blocks, best[1], moved, grid))
    return best[0], best[1], best[2]


def _ranges(blocks: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the scales and zero points with which the whole range of each block has codes."""
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    if grid.symmetric:  # the side that has one code more takes the largest weight
        scales = torch.where(high > -low, high, low) / -grid.middle
        return scales, torch.full_like(scales, grid.middle)
    scales = (high - low) / grid.top
    return scales, torch.where(scales == 0, float(grid.middle), -low / scales).round_().clamp_(0, grid.top)


Tried = tuple[Tensor, Tensor, Tensor, Tensor]
"""Codes, scales, zero points, and the squared error of each block."""


def _tried(blocks: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Tried:
    """Round with given scales, then take the scales that fit these codes best."""
    codes = codes_of(blocks, scales, zeros, grid)
    whole = codes - zeros[..., None]
    squares = whole.square().sum(-1)
    fitted = torch.where(squares == 0, scales, (blocks * whole).sum(-1) / squares)
    return codes, fitted, zeros, (blocks - whole * fitted[..., None]).square_().sum(-1)


def _better(one: Tried, other: Tried) -> Tried:
    wins = other[3] < one[3]
    return (
        torch.where(wins[:, None], other[0], one[0]),
        torch.where(wins, other[1], one[1]),
        torch.where(wins, other[2], one[2]),
        torch.where(wins, other[3], one[3]),
    )
