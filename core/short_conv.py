"""Convolutions of each channel over a few near tokens, past padding, documents and steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import is_exporting
from .context import Context
from .linear import exactly
from .state import Declared, Memories, Remembered


class ShortConv(nn.Module):
    """Convolve each of `width` channels over the token itself and the `kernel - 1` before it, from `bias` on.

    A document, and a row, begins as if zeros came before it.
    """

    def __init__(self, width: int, kernel: int, *, bias: bool = False) -> None:
        super().__init__()
        self.width = width
        self.back = kernel - 1
        self.weight = nn.Parameter(torch.empty(width, kernel))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a kernel that keeps the scale of what it covers."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def declared(self) -> Declared:
        """Keep the newest inputs, as many as the kernel reaches back."""
        return {"near": Remembered(("batch", self.back, self.width), "fixed")} if self.back else {}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories]:
        """Return what x (B, T, width) is convolved to, in its dtype, and what to keep where there is a state."""
        return self._with(convolved, x, context, state)

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories]:
        """Compute the same as a sum over the taps."""
        return self._with(tapped, x, context, state)

    def _with(
        self, convolve: Callable[..., Tensor], x: Tensor, context: Context, state: Memories | None
    ) -> tuple[Tensor, Memories]:
        wide, kept = widened(x, context, None if state is None else state.get("near"), self.back)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        with exactly(x):
            y = convolve(wide, self.weight.to(x.dtype), bias, context)
        return y, {} if kept is None else {"near": kept}


def widened(
    x: Tensor, context: Context, near: Tensor | None, before: int, after: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Return x (B, T, C) with the inputs around it that a kernel reaches, (B, before + T + after, C).

    What came before is `near` (B, before, C), or zeros where it is None; padding is zeros. The second is the next
    `near`, of the same dtype, where there is one.
    """
    if context.tokens.valid is not None:
        x = x.masked_fill(~context.tokens.valid.unsqueeze(-1), 0.0)
    if near is None:
        return F.pad(x, (0, 0, before, after)), None
    wide = torch.cat([near.to(x.dtype), x], dim=1)
    if context.length is None:
        return wide, wide[:, x.shape[1] :].to(near.dtype)
    newest = context.length.unsqueeze(1) + torch.arange(before, device=x.device)
    return wide, wide.gather(1, newest.unsqueeze(-1).expand(-1, -1, wide.shape[2])).to(near.dtype)


def convolved(wide: Tensor, weight: Tensor, bias: Tensor | None, context: Context, before: int | None = None) -> Tensor:
    """Return (B, T, C) of `widened` inputs and a kernel (C, taps), whose tap `before` (the last) is the token itself.

    Torch's convolution does it; documents, and passes without tokens, go tap by tap.
    """
    if context.tokens.doc is not None or (not is_exporting() and wide.shape[1] < weight.shape[1]):
        return tapped(wide, weight, bias, context, before)
    return F.conv1d(wide.transpose(1, 2), weight.unsqueeze(1), bias, groups=weight.shape[0]).transpose(1, 2)


def tapped(wide: Tensor, weight: Tensor, bias: Tensor | None, context: Context, before: int | None = None) -> Tensor:
    """Compute `convolved` as a sum over the taps of a kernel."""
    taps = weight.shape[1]
    before = taps - 1 if before is None else before
    length = wide.shape[1] - (taps - 1)
    doc = context.tokens.doc
    around = None if doc is None else F.pad(doc, (before, taps - 1 - before), value=-1)
    out = wide.new_zeros(wide.shape[0], length, wide.shape[2])
    for tap in range(taps):
        here = wide[:, tap : tap + length] * weight[:, tap]
        if doc is not None and around is not None:
            here = here * (around[:, tap : tap + length] == doc).unsqueeze(-1)
        out = out + here
    return out if bias is None else out + bias
