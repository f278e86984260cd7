"""How the hidden states of a sequence become one vector."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pool = Literal["mean", "first", "last", "max"]
"""The `mean` of real tokens, the `first` or the `last` of them, or of each entry the largest, `max`."""


def pooled(how: Pool, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return one vector a row, (B, C), of hidden (B, T, C), mask (B, T); a row without real tokens pools to 0."""
    if how == "max":
        return _largest(hidden, mask)
    return torch.einsum("bt,btc->bc", _shares(how, hidden, mask), hidden)


def pooled_reference(how: Pool, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Compute `pooled` of hidden (B, T, C) and mask (B, T) row by row."""
    rows = []
    for i in range(hidden.shape[0]):
        real = hidden[i] if mask is None else hidden[i][mask[i].bool()]
        if len(real) == 0:
            rows.append(hidden.new_zeros(hidden.shape[-1]))
        elif how in ("mean", "max"):
            rows.append(real.mean(0) if how == "mean" else real.max(0).values)
        else:
            rows.append(real[0 if how == "first" else -1])
    return torch.stack(rows)


def _shares(how: Pool, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return how much of each token is pooled, (B, T)."""
    real = hidden.new_ones(hidden.shape[:2]) if mask is None else mask.to(hidden.dtype)
    if how == "mean":
        return real / real.sum(1, keepdim=True).clamp(min=1)
    rank = real.cumsum(1) if how == "first" else real.flip(1).cumsum(1).flip(1)
    return real * (rank == 1)


def _largest(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.amax(1)
    real = mask.bool().unsqueeze(-1)
    found = hidden.masked_fill(~real, torch.finfo(hidden.dtype).min).amax(1)
    return found.masked_fill(~real.any(1), 0.0)
