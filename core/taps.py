"""What a kernel that slides along a sequence reads: its tokens, what came before them, and zeros beyond both ends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import Context


def reached(
    values: Tensor, before: int, after: int, context: Context, kept: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return what is read at the tokens of values (B, T, C), (B, before + T + after, C), and what to keep.

    A kernel covers `before` tokens before each and `after` behind it. `kept` (B, before, C): the newest values before
    these, None without a state. Values at padding count as zeros, as what lies beyond an end does. A kernel with a
    state reads nothing behind a token.
    """
    if context.tokens.valid is not None:
        values = values.masked_fill(~context.tokens.valid.unsqueeze(-1), 0.0)
    if kept is None:
        return F.pad(values, (0, 0, before, after)), None
    length = values.shape[1]
    values = torch.cat([kept, values], dim=1)
    count = context.length
    start = values.new_full((values.shape[0],), length, dtype=torch.int64) if count is None else count
    newest = start.unsqueeze(1) + torch.arange(before, device=values.device)
    return values, values.gather(1, newest.unsqueeze(-1).expand(-1, -1, values.shape[2]))


def covered(back: Tensor, before: int, after: int) -> Tensor:
    """Say which distances a kernel covers, bool; `back`: how far each key stands before its query, any shape."""
    return (back <= before) & (back >= -after)
