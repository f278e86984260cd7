"""The token before each: what a shift of one token reads, past padding, documents and steps."""

from __future__ import annotations

import torch
from torch import Tensor

from .context import Context
from .scan import last_real


def shifted(x: Tensor, context: Context, last: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return for each token of x (B, T, C) the one before it, (B, T, C), and the newest token, (B, C).

    `last` (B, C): the newest token of the steps before. A text, and a document, begins as if zeros came before it.
    """
    first = x.new_zeros(x.shape[0], x.shape[2]) if last is None else last
    every = torch.cat([first.unsqueeze(1), x], dim=1)
    before = every[:, :-1]
    if context.tokens.doc is not None:
        before = before.masked_fill(context.begins.unsqueeze(-1), 0.0)
    return before, last_real(every, context)


def mixed(x: Tensor, before: Tensor, share: Tensor) -> Tensor:
    """Return `share` (C,) parts of x (B, T, C) with 1 - `share` parts of the tokens before (Peng et al. 2023)."""
    return x * share + before * (1 - share)
