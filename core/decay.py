"""Sums that decay from token to token by what the tokens say: cut into chunks, and carried over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""Takes what is carried into a chunk and the chunk's own tensors; gives what is carried on, and what is kept of it."""


@dataclass(frozen=True, eq=False)
class Decays:
    """Hold how much is left of one moment at another, in chunks of L tokens: 0 where a document ends in between.

    `within` (B, N, H, L, L): of token j at token i of a chunk, 0 where j is later. `into` (B, N, H, L, 1): of what is
    carried into a chunk at its token i. `onward` (B, N, H, L, 1): of token j at the chunk's end. `across` (B, N, H, 1,
    1): of what is carried into a chunk at its end.
    """

    within: Tensor
    into: Tensor
    onward: Tensor
    across: Tensor

    @staticmethod
    def of(log_decay: Tensor, size: int, doc: Tensor | None) -> Decays:
        """Read decays (B, T, H), the logarithm of what a token leaves of all before it, in chunks of `size`."""
        g = cut(log_decay.unsqueeze(-1), size)
        earlier = torch.ones(size, size, dtype=torch.bool, device=g.device).tril()
        # Of each pair its own sum: a difference of two long sums would blur weak decays that follow a strong one.
        sums = (g.mT * earlier) @ earlier.tril(-1).to(g.dtype)
        into = g.cumsum(-2).exp()
        if doc is not None:
            chunks = g.shape[1]
            doc = F.pad(doc, (0, chunks * size - doc.shape[1]), value=-1).unflatten(1, (chunks, size))
            # The first chunk is handed a state, and documents come without one: nothing reaches into it.
            handed = torch.cat([doc[:, :1, :1] - 1, doc[:, :-1, -1:]], dim=1)
            into = into * (doc == handed)[:, :, None, :, None]
            earlier = (earlier & (doc.unsqueeze(-1) == doc.unsqueeze(-2)))[:, :, None]
        within = sums.masked_fill(~earlier, -math.inf).exp()
        return Decays(within, into, within[..., -1:, :].mT, into[..., -1:, :])


def size_of_chunks(most: int, length: int) -> int:
    """Return how many tokens a chunk has: `most`, or all of them where they are fewer; at least 1."""
    return cast(int, torch.sym_min(most, length)) if torch.compiler.is_compiling() else max(1, min(most, length))


def cut(x: Tensor, size: int) -> Tensor:
    """Return x (B, T, H, D) in chunks, (B, N, H, size, D), the last one filled with zeros."""
    chunks = (x.shape[1] + size - 1) // size
    if not torch.compiler.is_compiling():
        chunks = max(chunks, 1)
    padded = F.pad(x, (0, 0, 0, 0, 0, chunks * size - x.shape[1]))
    found: Tensor = padded.unflatten(1, (chunks, size)).transpose(2, 3)
    return found


def joined(x: Tensor, length: int) -> Tensor:
    """Return chunks (B, N, H, L, D) as the `length` tokens that they were cut from, (B, T, H, D)."""
    return x.transpose(2, 3).flatten(1, 2)[:, :length]


def carried(step: Step, first: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what is carried out of the last chunk, and what `step` keeps of each, (B, N, ...).

    `first` is carried into the first chunk; `parts` (B, N, ...) are the chunks' own.
    """
    if torch.compiler.is_compiling():  # a graph that takes any number of chunks can't be a loop over so many
        from torch._higher_order_ops.scan import scan  # which brings torch's compiler with it

        return cast("tuple[Tensor, tuple[Tensor, ...]]", scan(_apart(step), first, tuple(parts), dim=1))
    kept = []
    for chunk in zip(*(part.unbind(1) for part in parts), strict=True):
        first, keeps = step(first, *chunk)
        kept.append(keeps)
    return first, tuple(torch.stack(each, dim=1) for each in zip(*kept, strict=True))


def _apart(step: Step) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
    """Return a step of a scan, which may not give away what came in."""

    def scanned(before: Tensor, chunk: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        after, keeps = step(before, *chunk)
        return after, tuple(t.clone() for t in keeps)

    return scanned


def draw_steps(bias: Tensor, a_log: Tensor) -> None:
    """Draw biases of steps dt = softplus(bias) between 0.001 and 0.1, and rates exp(a_log) of decay between 1 and 16.

    A head then forgets within ten to a thousand tokens (Gu and Dao 2023, section 3.6; Dao and Gu 2024).
    """
    nn.init.uniform_(bias, math.log(0.001), math.log(0.1))
    nn.init.uniform_(a_log, 1.0, 16.0)
    with torch.no_grad():
        bias.exp_()
        bias.add_(torch.log(-torch.expm1(-bias)))  # softplus, undone
        a_log.log_()
