"""Cross-entropy over a vocabulary, in chunks that never hold the logits of all tokens at once, and of two classes."""

from __future__ import annotations

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


def cross_entropy_reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Compute the summed cross-entropy of `linear_cross_entropy` from all logits at once."""
    logits = F.linear(hidden, weight, bias)
    return F.cross_entropy(at_least_fp32(logits), targets, ignore_index=IGNORED, reduction="sum")


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


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy (nats) of hidden (N, C) @ weight.T (C, V) + bias against targets (N,) int64.

    The second result is how many targets had the largest logit. Targets of -100 count for nothing; with no target the
    sum is 0. Gradients are computed in the forward pass, chunk by chunk, so logits (N, V) never exist.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss, hits = _LinearCrossEntropy.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
        return loss, hits
    dtype = accumulation_dtype(hidden.dtype)
    loss, hits = hidden.new_zeros((), dtype=dtype), targets.new_zeros(())
    size = chunk_size(hidden)
    for h, t in zip(hidden.split(size), targets.split(size), strict=True):
        logits = at_least_fp32(F.linear(h, weight, bias))
        loss = loss + F.cross_entropy(logits, t, ignore_index=IGNORED, reduction="sum")
        hits = hits + (logits.argmax(-1) == t).sum()
    return loss, hits


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        # The meta device, where only sizes are asked for, knows no autocast.
        if not hidden.is_meta and torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden16, weight16, bias16 = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        else:
            hidden16, weight16, bias16 = hidden, weight, bias
        wide = accumulation_dtype(hidden16.dtype)
        loss, hits = hidden.new_zeros((), dtype=wide), targets.new_zeros(())
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[2] else None
        size = chunk_size(hidden)
        for start in range(0, hidden.shape[0], size):
            rows = slice(start, start + size)
            gradient, cost, hit = _chunk(hidden16[rows], weight16, bias16, targets[rows])
            loss += cost
            hits += hit
            if d_bias is not None:
                d_bias += gradient.sum(0, dtype=wide)
            if d_hidden is not None:
                d_hidden[rows] = gradient @ weight16
            if d_weight is not None:
                _add_product(d_weight, gradient.t(), hidden16[rows])
            del gradient  # before the next one is made
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
        )


def _chunk(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of some tokens' logits, (N, V) in their dtype, their summed loss and their hits."""
    logits = F.linear(hidden, weight, bias)
    real = targets != IGNORED
    index = targets.where(real, targets.new_zeros(())).unsqueeze(1)
    hits = ((logits.argmax(-1) == targets) & real).sum()
    logs = _log_probabilities(logits)
    loss = -(logs.gather(1, index).squeeze(1) * real).sum()
    gradient = logs.exp_()
    gradient.scatter_add_(1, index, gradient.new_full(index.shape, -1.0))
    counts = real.unsqueeze(1)
    return gradient.mul_(counts) if gradient is logits else torch.mul(gradient, counts, out=logits), loss, hits


def _log_probabilities(logits: Tensor) -> Tensor:
    """Return the logarithms of the softmax of logits (N, V), at least in fp32: in their place where they are that."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        return F.log_softmax(logits, dim=1, dtype=torch.float32)
    return logits.sub_(torch.logsumexp(logits, dim=1, keepdim=True))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `total`, summed in its dtype; of half precision on CUDA without a copy in a wider one."""
    if a.is_cuda and a.dtype != total.dtype == torch.float32:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
