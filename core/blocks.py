"""Blocks of a sequence: cut it into them, choose those that each of them sees, and gather what stands there."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .tokens import Tokens


def cut(x: Tensor, block: int) -> Tensor:
    """Return the blocks of x (B, T, ...), (B, N, block, ...): the last one is filled up with zeros."""
    count = -(-x.shape[1] // block)
    padded: Tensor = F.pad(x, (0, 0) * (x.dim() - 2) + (0, count * block - x.shape[1]))
    return padded.reshape(x.shape[0], count, block, *x.shape[2:])


def gathered(x: Tensor, chosen: Tensor, block: int) -> Tensor:
    """Return the chosen blocks of x (B, T, ...), side by side: (B * N, M * block, ...).

    chosen (B or 1, N, M) int64: M blocks for each of N; -1 stands for none, and gives the first.
    """
    blocks, rows = cut(x, block), chosen.clamp(min=0)
    if rows.shape[0] == 1:
        return blocks[:, rows[0]].flatten(2, 3).flatten(0, 1)
    return blocks[torch.arange(len(rows), device=rows.device)[:, None, None], rows].flatten(2, 3).flatten(0, 1)


def block_tokens(tokens: Tokens, chosen: Tensor, block: int) -> tuple[Tokens, Tokens]:
    """Return the tokens of each block's queries, (B * N, block), and of its chosen keys, (B * N, M * block).

    Keys that stand nowhere are not valid. B is 1 where all rows stand at the same positions.
    """
    rows = tokens.rows
    tokens = tokens.map(lambda t: t.expand(rows, -1))
    real = torch.ones_like(tokens.pos, dtype=torch.bool) if tokens.valid is None else tokens.valid
    listed = (chosen >= 0).unsqueeze(-1).expand(rows, -1, -1, block).flatten(2).flatten(0, 1)
    keys = tokens.map(lambda t: gathered(t, chosen, block))
    there = Tokens(keys.pos, gathered(real, chosen, block) & listed, keys.doc, keys.marks)
    return tokens.map(lambda t: cut(t, block).flatten(0, 1)), there


def listed(table: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """Return for each row of a table (N, N) the columns that hold, in order, (N, most), ended by -1."""
    columns = np.where(table, np.arange(len(table)), len(table))
    columns = np.sort(columns, axis=1)[:, :most]
    columns[columns == len(table)] = -1
    return columns


def drawn(seed: int, i: int, free: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `count` of the blocks `free` for block i: those first by a hash, the same on every device."""
    return free[np.argsort(_mixed(seed, i, free))[:count]]


def _mixed(seed: int, i: int, j: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash of (seed, i, j) for each j, by the finalizer of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = (np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)) ^ ((np.uint64(i) << np.uint64(32)) | j.astype(np.uint64))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return x ^ (x >> np.uint64(31))
