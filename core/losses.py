"""Cross-entropy over a vocabulary, in chunks that never hold the logits of all tokens at once, and of two classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import at_least_fp32
from .state import accumulation_dtype

IGNORED = -100
CHUNK = 512
"""Tokens a chunk: on CPU 512 was faster than all logits at once up to 32k words, and took a quarter of the memory."""
CUDA_CHUNK = 2048
"""The same on CUDA, which smaller products keep waiting."""


@dataclass(frozen=True)
class Terms:
    """Say what a cross-entropy is of, beside its targets.

    `label_smoothing`: the share of a target that all classes have in equal parts (Szegedy et al. 2016). `z_loss`: what
    the square of the logarithm of the logits' summed exponentials counts, which keeps them from drifting (Chowdhery et
    al. 2022). `soft_cap`: how far logits may be from 0; they near it as a tanh does (Gemma Team 2024).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    soft_cap: float | None = None


PLAIN = Terms()


def summed_cross_entropy(logits: Tensor, targets: Tensor, terms: Terms = PLAIN) -> Tensor:
    """Return the summed cross-entropy (nats) of capped logits (N, V) against targets (N,) int64; -100 is not asked."""
    total = F.cross_entropy(
        logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=terms.label_smoothing
    )
    if terms.z_loss:
        total = total + terms.z_loss * (logits.logsumexp(1).square() * (targets != IGNORED)).sum()
    return total


def cross_entropy_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms = PLAIN
) -> Tensor:
    """Compute the summed cross-entropy of `linear_cross_entropy` from all logits at once."""
    logits = at_least_fp32(F.linear(hidden, weight, bias))
    if terms.soft_cap is not None:
        logits = terms.soft_cap * torch.tanh(logits / terms.soft_cap)
    return summed_cross_entropy(logits, targets, terms)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed binary cross-entropy (nats) of logits against targets of the same shape, 1, 0 or -100.

    The second result is how many targets a logit of their sign had. Targets of -100 count for nothing.
    """
    wide, asked, wanted = at_least_fp32(logits), targets != IGNORED, targets.clamp(min=0)
    each = F.binary_cross_entropy_with_logits(wide, wanted.to(wide.dtype), reduction="none")
    return (each * asked).sum(), (((wide > 0) == (wanted == 1)) & asked).sum()


def chunk_size(hidden: Tensor) -> int:
    """Return how many tokens of hidden (N, C) are scored at once: by the device alone."""
    return CUDA_CHUNK if hidden.is_cuda else CHUNK


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms = PLAIN
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy (nats) of hidden (N, C) @ weight.T (C, V) + bias against targets (N,) int64.

    The second result is how many targets had the largest logit. Targets of -100 count for nothing; with no target the
    sum is 0. Gradients are computed in the forward pass, chunk by chunk, so logits (N, V) never exist.
    """
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (hidden, weight, bias)):
        loss, hits = _LinearCrossEntropy.apply(hidden, weight, bias, targets, terms)  # type: ignore[no-untyped-call]
        return loss, hits
    loss, hits = hidden.new_zeros((), dtype=accumulation_dtype(hidden.dtype)), targets.new_zeros(())
    for _, cost, hit in _chunks(*_narrowed(hidden, weight, bias), targets, terms, differentiate=False):
        loss = loss + cost
        hits = hits + hit
    return loss, hits


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms
    ) -> tuple[Tensor, Tensor]:
        narrow = _narrowed(hidden, weight, bias)
        wide = accumulation_dtype(narrow[0].dtype)
        loss, hits = hidden.new_zeros((), dtype=wide), targets.new_zeros(())
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[2] else None
        rows = slice(0, 0)
        for gradient, cost, hit in _chunks(*narrow, targets, terms, differentiate=True):
            rows = slice(rows.stop, rows.stop + len(gradient))
            loss += cost
            hits += hit
            if d_bias is not None:
                d_bias += gradient.sum(0, dtype=wide)
            if d_hidden is not None:
                d_hidden[rows] = gradient @ narrow[1]
            if d_weight is not None:
                _add_product(d_weight, gradient.t(), narrow[0][rows])
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * d_loss.to(d_hidden.dtype),
            None if d_weight is None else (d_weight * d_loss).to(ctx.dtypes[0]),
            None if d_bias is None else (d_bias * d_loss).to(ctx.dtypes[1]),
            None,
            None,
        )


def _narrowed(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what a product is made of under autocast; the same tensors without."""
    # The meta device, where only sizes are asked for, knows no autocast.
    if hidden.is_meta or not torch.is_autocast_enabled(hidden.device.type):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(hidden.device.type)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms, *, differentiate: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield for some tokens at a time the gradient of their logits, (N, V), their summed loss and their hits.

    All gradients lie in the same memory, as the logits before them did: whoever takes one is done with it before the
    next. Without `differentiate` they are not made, and what lies there means nothing.
    """
    size = chunk_size(hidden)
    # Once: new memory for each chunk is as slow on CPU as a product, as the system clears its pages.
    room = hidden.new_empty(min(size, len(hidden)), len(weight))
    for h, t in zip(hidden.split(size), targets.split(size), strict=True):
        logits = room[: len(h)]
        if bias is None:
            torch.mm(h, weight.t(), out=logits)
        else:
            torch.addmm(bias, h, weight.t(), out=logits)
        yield logits, *_scored(logits, t, terms, differentiate)


def _scored(logits: Tensor, targets: Tensor, terms: Terms, differentiate: bool) -> tuple[Tensor, Tensor]:
    """Return the summed loss of logits (N, V) and their hits; `differentiate` puts their gradient in their place."""
    wide, cap = accumulation_dtype(logits.dtype), terms.soft_cap
    if cap is not None:
        logits.div_(cap).tanh_().mul_(cap)
    slopes = None if cap is None or not differentiate else 1 - (logits / cap).square_()
    real = targets != IGNORED
    index = targets.where(real, targets.new_zeros(())).unsqueeze(1)
    largest, best = (found.unsqueeze(1) for found in logits.max(1))
    hits = ((best == index).squeeze(1) & real).sum()
    # What a target is wanted to score: of smoothed ones, all classes' mean has a share.
    wanted, share = logits.gather(1, index).to(wide), terms.label_smoothing
    if share:
        wanted = wanted * (1 - share) + share * logits.mean(1, dtype=wide, keepdim=True)
    shares = torch.softmax(logits, 1, out=logits) if logits.dtype == wide else torch.softmax(logits, 1, dtype=wide)
    # The largest share is at least 1 / V: its logarithm is exact where that of the target's may be that of 0.
    total = largest.to(wide) - shares.gather(1, best).log()
    loss = ((total - wanted + terms.z_loss * total.square()) * real.unsqueeze(1)).sum()
    if differentiate:
        if terms.z_loss:
            shares.mul_(1 + 2 * terms.z_loss * total)
        if share:
            shares.sub_(share / logits.shape[1])
        shares.scatter_add_(1, index, shares.new_full(index.shape, share - 1.0))
        if slopes is not None:
            shares.mul_(slopes)
        torch.mul(shares, real.unsqueeze(1), out=logits)
    return loss, hits


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `total`, summed in its dtype; of half precision on CUDA without a copy in a wider one."""
    if a.is_cuda and a.dtype != total.dtype == torch.float32:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
