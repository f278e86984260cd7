"""Sums of outer products on CPU, a stretch of chunks at a time, forwards and backwards.

What a stretch takes fits into the processor's caches: nothing but results, and the sums that chunks are handed, is
written for all tokens. A chunk's scores are formed again when gradients are asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import exactly

CHUNK = 64
"""Tokens a chunk: within it scores are formed."""
AT_ONCE = 2**19
"""Numbers that one tensor of a stretch has, more where a single chunk does: 2 MB of fp32."""
PARTS = 2
"""Stretches that a text has at least, as far as its chunks go: of a short one they take no more than of a long one."""
NOTHING = -1000.0
"""The logarithm of a decay that leaves nothing, in any number format."""

Again = Callable[..., tuple[Tensor, Tensor]]
"""The same sums by operations whose gradients have gradients."""


def takes(x: Tensor) -> bool:
    """Say whether stretches serve for x (B, T, ...): on CPU, run as it stands, several tokens.

    The meta device counts as CPU, so that estimates read what CPU does.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False  # before anything is asked of a length that graphs leave open
    return (
        x.device.type in ("cpu", "meta")
        and x.numel() > 0
        and x.shape[1] > 1
        and not torch._C._are_functorch_transforms_active()
    )


def path(size: int) -> str:
    """Name the path of sums that take stretches where these serve, in chunks of so many tokens."""
    return f"chunks of {size}, on CPU a stretch of them at a time, which the caches hold"


def fading_sums(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, first: Tensor, again: Again
) -> tuple[Tensor, Tensor]:
    """Return y_t = q_t h_t, (B, T, H, E), and the last h, of h_t = exp(log_decay_t) h_(t-1) + k_t v_t, (B, H, D, E).

    q, k (B, T, G, D) and v (B, T, K, E), with G and K dividing H, one number format; log_decay (B, T, H), or None
    where nothing fades; `first` (B, H, D, E) comes before the first token. `again` takes the same five.
    """
    found = _Fading.apply(q, k, v, log_decay, first, again)  # type: ignore[no-untyped-call]
    return cast("tuple[Tensor, Tensor]", found)


def weighed_sums(q: Tensor, k: Tensor, v: Tensor, first: Tensor, again: Again) -> tuple[Tensor, Tensor]:
    """Return sum_{s <= t} (q_t . k_s) v_s / sum_{s <= t} q_t . k_s, (B, T, H, E), 0 where the divisor is none.

    q, k never negative. `first` (B, H, D, E + 1) is added to the sums of k_s v_s, and in the last column to those of
    k_s; the second result is what comes of it. Otherwise as `fading_sums`.
    """
    return cast("tuple[Tensor, Tensor]", _Weighed.apply(q, k, v, first, again))  # type: ignore[no-untyped-call]


class _Fades(ABC):
    """Say what is left of one token at another within a stretch of N chunks of L tokens.

    `across` (N, B or 1, H or 1, 1, 1): of what each chunk was handed, at its end.
    """

    across: Tensor

    @abstractmethod
    def within(self, scores: Tensor) -> Tensor:
        """Return scores (N, B, H, L, L) of pairs of a chunk by what is left, in their place: 0 for later keys."""

    @abstractmethod
    def handed(self, x: Tensor) -> Tensor:
        """Return x (N, B, H, L, D) by what is left at each token of what its chunk was handed."""

    @abstractmethod
    def onward(self, x: Tensor) -> Tensor:
        """Return x (N, B, H, L, D) by what is left of each token at its chunk's end."""


class _Nowhere(_Fades):
    """Nothing fades."""

    def __init__(self, like: Tensor, chunks: int) -> None:
        self.across = like.new_ones(chunks, 1, 1, 1, 1)

    def within(self, scores: Tensor) -> Tensor:
        return scores.tril_()

    def handed(self, x: Tensor) -> Tensor:
        return x

    def onward(self, x: Tensor) -> Tensor:
        return x


class _ByToken(_Fades):
    """Each token leaves a share of all before it: the logarithms are (N, B, H, L)."""

    def __init__(self, log_decay: Tensor) -> None:
        # In fp64 differences of sums are as exact as sums of their own would be: no strong decay blurs a weak one.
        sums = log_decay.double().clamp(min=NOTHING).cumsum(-1)
        self._within = _differences(sums, log_decay.dtype)
        self._handed = sums.to(log_decay.dtype).exp().unsqueeze(-1)
        self._onward = self._within[..., -1, :].unsqueeze(-1)
        self.across = self._handed[..., -1:, :]

    def within(self, scores: Tensor) -> Tensor:
        return scores.mul_(self._within)

    def handed(self, x: Tensor) -> Tensor:
        return x * self._handed

    def onward(self, x: Tensor) -> Tensor:
        return x * self._onward


def _differences(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Return exp(sums_i - sums_j) of sums (..., L), (..., L, L), 0 where j is later."""
    between = sums.new_empty((*sums.shape, sums.shape[-1]), dtype=dtype)
    torch.sub(sums.unsqueeze(-1), sums.unsqueeze(-2), out=between)
    return between.exp_().tril_()


@dataclass(frozen=True)
class _Plan:
    """Say how T tokens of H heads are cut: `chunks` of `size` tokens a stretch."""

    length: int
    heads: int
    size: int
    chunks: int

    @staticmethod
    def of(q: Tensor, v: Tensor, first: Tensor) -> _Plan:
        """Plan for q (B, T, G, D), v (B, T, K, E) and first (B, H, D, E)."""
        length, heads = q.shape[1], first.shape[1]
        size = min(CHUNK, length)
        one = q.shape[0] * heads * size * max(size, q.shape[-1], v.shape[-1])
        return _Plan(length, heads, size, max(1, min(AT_ONCE // one, -(-length // (PARTS * size)))))

    @property
    def all(self) -> int:
        """Return how many chunks there are, the last stretch being a whole one."""
        return -(-self.length // (self.chunks * self.size)) * self.chunks

    def stretches(self) -> Iterator[tuple[slice, slice]]:
        """Return the columns and the chunks of each stretch."""
        for chunk in range(0, self.all, self.chunks):
            after = chunk + self.chunks
            yield slice(chunk * self.size, min(after * self.size, self.length)), slice(chunk, after)

    def load(self, x: Tensor, columns: slice) -> Tensor:
        """Return columns of x (B, T, G, D) in chunks, (N, B, H, L, D), zeros behind its end."""
        x = x[:, columns]
        missing = self.chunks * self.size - x.shape[1]
        if missing:
            x = F.pad(x, (0, 0, 0, 0, 0, missing))
        cut: Tensor = x.unflatten(1, (self.chunks, self.size)).permute(1, 0, 3, 2, 4)
        return (
            cut.repeat_interleave(self.heads // cut.shape[2], dim=2) if cut.shape[2] < self.heads else cut.contiguous()
        )

    def store(self, found: Tensor, into: Tensor, columns: slice) -> None:
        """Write chunks (N, B, H, L, D) to columns of `into` (B, T, G, D), the sum of those that shared a head."""
        if into.shape[2] < self.heads:
            found = found.unflatten(2, (into.shape[2], -1)).sum(3)
        found, there = found.permute(1, 0, 3, 2, 4), into[:, columns]
        if there.shape[1] == self.chunks * self.size:
            there.unflatten(1, (self.chunks, self.size)).copy_(found)  # by one copy, in the order that it is read
        else:
            there.copy_(found.flatten(1, 2)[:, : there.shape[1]])

    def fades(self, log_decay: Tensor | None, columns: slice, like: Tensor) -> _Fades:
        """Return what is left within a stretch."""
        if log_decay is None:
            return _Nowhere(like, self.chunks)
        return _ByToken(self.load(log_decay.unsqueeze(-1), columns).squeeze(-1))


class _Fading(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, first: Tensor, again: Again
    ) -> tuple[Tensor, Tensor]:
        plan = _Plan.of(q, v, first)
        y, states = v.new_empty(*v.shape[:2], plan.heads, v.shape[3]), _room(plan, first)
        with exactly(q):
            for columns, chunks in plan.stretches():
                parts = (plan.load(q, columns), plan.load(k, columns), plan.load(v, columns))
                fades = plan.fades(log_decay, columns, v)
                plan.store(_ahead(*parts, fades, states[chunks.start : chunks.stop + 1]), y, columns)
        ctx.save_for_backward(q, k, v, log_decay, first, states)
        ctx.plan, ctx.again = plan, again
        return y, states[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_y: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay, first, states = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody will ask for gradients of these
            return *_again(ctx, (q, k, v, log_decay, first), (d_y, d_last)), None
        plan = ctx.plan
        d_q, d_k, d_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        d_decay = torch.empty_like(log_decay) if ctx.needs_input_grad[3] else None
        for columns, chunks in reversed(list(plan.stretches())):
            parts = (plan.load(q, columns), plan.load(k, columns), plan.load(v, columns))
            fades, held = plan.fades(log_decay, columns, v), states[chunks.start : chunks.stop + 1]
            *found, d_states = _back(*parts, plan.load(d_y, columns), fades, held, d_last)
            for part, into in zip(found, (d_q, d_k, d_v), strict=True):
                plan.store(part, into, columns)
            d_last = d_states[0]
            if d_decay is not None:
                # What a token's decay does, all do that it comes before: to what they read, and what is left of them.
                each = (parts[0] * found[0]).sum(-1) - (parts[1] * found[1]).sum(-1)
                each[..., -1] += (held[1:] * d_states[1:]).sum((-1, -2))
                plan.store(each.flip(-1).cumsum(-1).flip(-1).unsqueeze(-1), d_decay.unsqueeze(-1), columns)
        return d_q, d_k, d_v, d_decay, d_last, None


class _Weighed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, first: Tensor, again: Again) -> tuple[Tensor, Tensor]:
        plan = _Plan.of(q, v, first)
        y, states = v.new_empty(*v.shape[:2], plan.heads, v.shape[3]), _room(plan, first)
        divisor = v.new_empty(*v.shape[:2], plan.heads, 1)
        fades = _Nowhere(v, plan.chunks)
        with exactly(q):
            for columns, chunks in plan.stretches():
                parts = (plan.load(q, columns), plan.load(k, columns), _counted(plan.load(v, columns)))
                both = _ahead(*parts, fades, states[chunks.start : chunks.stop + 1])
                below = both[..., -1:]
                plan.store(both[..., :-1].div_(_divisor(below)), y, columns)
                plan.store(below, divisor, columns)
        ctx.save_for_backward(q, k, v, first, y, divisor, states)
        ctx.plan, ctx.again = plan, again
        return y, states[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_y: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, first, y, divisor, states = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody will ask for gradients of these
            return *_again(ctx, (q, k, v, first), (d_y, d_last)), None
        plan = ctx.plan
        d_q, d_k, d_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        fades = _Nowhere(v, plan.chunks)
        for columns, chunks in reversed(list(plan.stretches())):
            parts = (plan.load(q, columns), plan.load(k, columns), _counted(plan.load(v, columns)))
            above = plan.load(d_y, columns) / _divisor(plan.load(divisor, columns))
            below = (above * plan.load(y, columns)).sum(-1, keepdim=True).neg_()
            held = states[chunks.start : chunks.stop + 1]
            *found, d_states = _back(*parts, torch.cat([above, below], dim=-1), fades, held, d_last)
            for part, into in zip((*found[:2], found[2][..., :-1]), (d_q, d_k, d_v), strict=True):
                plan.store(part, into, columns)
            d_last = d_states[0]
        return d_q, d_k, d_v, d_last, None


def _counted(v: Tensor) -> Tensor:
    """Return values (..., E) with one more column of ones."""
    return F.pad(v, (0, 1), value=1.0)


def _divisor(sums: Tensor) -> Tensor:
    """Return what to divide by: infinity where nothing was summed, which leaves 0."""
    return sums.masked_fill(sums <= torch.finfo(sums.dtype).tiny, math.inf)


def _room(plan: _Plan, first: Tensor) -> Tensor:
    """Return room for what each chunk is handed and the last hands on, (chunks + 1, B, H, D, E), the first written."""
    states = first.new_empty(plan.all + 1, *first.shape)
    states[0] = first
    return states


def _ahead(q: Tensor, k: Tensor, v: Tensor, fades: _Fades, states: Tensor) -> Tensor:
    """Return what a stretch reads, (N, B, H, L, E), and write to `states` what is there after each of its chunks.

    q, k (N, B, H, L, D); v (N, B, H, L, E); states (N + 1, B, H, D, E), of which the first is there.
    """
    y = fades.within(q @ k.mT) @ v
    _product(fades.onward(k).mT, v, states[1:])
    for before, after, left in zip(states, states[1:], fades.across, strict=False):
        after.addcmul_(before, left)
    return _add_product(y, fades.handed(q), states[:-1])


def _back(
    q: Tensor, k: Tensor, v: Tensor, d_y: Tensor, fades: _Fades, states: Tensor, d_last: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v of a stretch, and of all its states, (N + 1, B, H, D, E)."""
    scores, d_scores = fades.within(q @ k.mT), fades.within(d_y @ v.mT)
    d_states = torch.empty_like(states)
    d_states[-1] = d_last
    _product(fades.handed(q).mT, d_y, d_states[:-1])
    for chunk in range(len(fades.across) - 1, -1, -1):
        d_states[chunk].addcmul_(d_states[chunk + 1], fades.across[chunk])
    d_q = _add_product(fades.handed(d_y @ states[:-1].mT), d_scores, k)
    d_k = _add_product(fades.onward(v @ d_states[1:].mT), d_scores.mT, q)
    d_v = _add_product(scores.mT @ d_y, fades.onward(k), d_states[1:])
    return d_q, d_k, d_v, d_states


def _product(a: Tensor, b: Tensor, into: Tensor) -> None:
    """Write a @ b (N, B, H, ...) to `into`, whose numbers lie in a row."""
    torch.bmm(a.flatten(0, 2), b.flatten(0, 2), out=into.view(-1, *into.shape[3:]))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a @ b to `total` (N, B, H, ...) in its place, and return it."""
    total.flatten(0, 2).baddbmm_(a.flatten(0, 2), b.flatten(0, 2))
    return total


def _again(ctx: Any, given: tuple[Tensor | None, ...], grads: tuple[Tensor, ...]) -> Iterator[Tensor | None]:
    """Return gradients that have gradients, of those of `given` that ask for them."""
    needed = [t for t, asked in zip(given, ctx.needs_input_grad, strict=False) if t is not None and asked]
    found = iter(torch.autograd.grad(ctx.again(*given), needed, grads, create_graph=True, allow_unused=True))
    return (next(found) if asked else None for asked in ctx.needs_input_grad[: len(given)])
