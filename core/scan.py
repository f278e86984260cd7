"""Recurrences of one step a token, h_t from h_(t-1), for all tokens at once and without dividing by what decays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import is_exporting
from .context import Context

CHUNK = 8
"""Tokens a chunk where steps are doubled: more make one token dearer, fewer the pass over the chunks' ends."""


@dataclass(frozen=True)
class _Law:
    """Say how a step goes: h_t = step(a_t, h_(t-1), b_t), and how two steps' a make that of both.

    `nothing`: the h that adds nothing to any b. `same`: the a that leaves h as it is.
    """

    step: Callable[[Tensor, Tensor, Tensor], Tensor]
    both: Callable[[Tensor, Tensor], Tensor]
    nothing: float
    same: float


_SUMS = _Law(lambda a, h, b: torch.addcmul(b, a, h), torch.mul, 0.0, 1.0)
_PEAKS = _Law(lambda a, h, b: torch.maximum(b, a + h), torch.add, -math.inf, 0.0)


def decaying_sums(a: Tensor, b: Tensor, first: Tensor, longest: int) -> Tensor:
    """Return h_t = a_t h_(t-1) + b_t, b (B, T, ...), from h_0 = `first` (B, ...), for a of any shape that fits b.

    Products of a are formed, and nothing is divided by them: where |a| is at most 1 nothing overflows, and what decays
    past the smallest number is 0. `longest`: T is at most so much, which code compiled for any length must know.
    """
    return _scan(a, b, first, longest, _SUMS)


def falling_peaks(a: Tensor, b: Tensor, first: Tensor, longest: int) -> Tensor:
    """Return h_t = max(a_t + h_(t-1), b_t), the largest so far less what it fell since; otherwise as above."""
    return _scan(a, b, first, longest, _PEAKS)


def last_real(every: Tensor, context: Context) -> Tensor:
    """Return (B, ...): of every (B, 1 + T, ...), what came before and then at each token, that at the last real one."""
    count = context.length
    if count is None:
        return every[:, -1]
    spread = (...,) + (None,) * (every.dim() - 1)
    newest: Tensor = every.gather(1, count[spread].expand(-1, 1, *every.shape[2:])).squeeze(1)
    return newest


def _scan(a: Tensor, b: Tensor, first: Tensor, longest: int, law: _Law) -> Tensor:
    if is_exporting():
        return _as_operator(a, b, first, law)
    if torch.compiler.is_compiling():
        return _doubling(a, b, first, longest, law)
    return _in_blocks(a, b, first, law) if b.shape[1] > 1 else law.step(a, first.unsqueeze(1), b)


def _in_blocks(a: Tensor, b: Tensor, before: Tensor, law: _Law) -> Tensor:
    """Step through all blocks side by side, then from block to block: 2 sqrt(T) steps, and each token thrice."""
    length = b.shape[1]
    size = math.isqrt(length - 1) + 1
    a, b = _folded(a, size), _folded(b, size)
    (first, h), *others = zip(a.unbind(2), b.unbind(2), strict=True)
    inner, reaches = [h], [first]
    for each, new in others:
        inner.append(law.step(each, inner[-1], new))
        reaches.append(law.both(reaches[-1], each))
    carried = [before]
    for each, new in zip(reaches[-1].unbind(1), inner[-1].unbind(1), strict=True):
        carried.append(law.step(each, carried[-1], new))
    starts = torch.stack(carried[:-1], dim=1).unsqueeze(2)
    whole = law.step(torch.stack(reaches, dim=2), starts, torch.stack(inner, dim=2))
    return whole.flatten(1, 2)[:, :length]


def _as_operator(a: Tensor, b: Tensor, first: Tensor, law: _Law) -> Tensor:
    """Return one ONNX operator that steps token by token, of any number: there a step costs next to nothing."""
    from torch._higher_order_ops.scan import scan  # which brings torch's compiler with it

    def step(h: Tensor, now: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what is carried on, and what comes out: the same, in a tensor of its own."""
        h = law.step(now[0], h, now[1])
        return h, h.clone()

    _, every = scan(step, first, (a.transpose(0, 1), b.transpose(0, 1)), dim=0)
    whole: Tensor = every.transpose(0, 1)
    return whole


def _doubling(a: Tensor, b: Tensor, first: Tensor, longest: int, law: _Law) -> Tensor:
    """Double how far each step reaches, in chunks and then over their ends: as many operations for any T."""
    length = b.shape[1]
    b = torch.cat([law.step(a[:, :1], first.unsqueeze(1), b[:, :1]), b[:, 1:]], dim=1)
    a, b = _doubled(_folded(a, CHUNK), _folded(b, CHUNK), CHUNK, 2, law)
    ends = _doubled(a[:, :, -1], b[:, :, -1], -(-longest // CHUNK), 1, law)[1]
    whole = law.step(a, _later(ends, 1, 1, law.nothing).unsqueeze(2), b)
    return whole.flatten(1, 2)[:, :length]


def _doubled(a: Tensor, b: Tensor, longest: int, dim: int, law: _Law) -> tuple[Tensor, Tensor]:
    """Return what all steps so far make of a, and h, over a dimension (Hillis and Steele 1986)."""
    reach = 1
    while reach < longest:
        b = law.step(a, _later(b, dim, reach, law.nothing), b)
        a = law.both(a, _later(a, dim, reach, law.same))
        reach *= 2
    return a, b


def _folded(x: Tensor, size: int) -> Tensor:
    """Return x (B, T, ...) in chunks, (B, N, size, ...), zeros behind its end."""
    chunks = (x.shape[1] + size - 1) // size
    end = chunks * size - x.shape[1]
    chunked: Tensor = F.pad(x, [0, 0] * (x.dim() - 2) + [0, end]).unflatten(1, (chunks, size))
    return chunked


def _later(x: Tensor, dim: int, by: int, fill: float) -> Tensor:
    """Return x moved `by` places on along a dimension, `fill` before it."""
    return F.pad(x, [0, 0] * (x.dim() - 1 - dim) + [by, 0], value=fill).narrow(dim, 0, x.shape[dim])
