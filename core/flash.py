"""Windows through FlashAttention, as torch ships it for CUDA."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor

from .context import Context
from .linear import computed_in

HALF = (torch.float16, torch.bfloat16)
WIDEST = 256


def unfit(head_dim: int) -> str:
    """Say why FlashAttention can't serve heads of `head_dim` with a window; empty where it can."""
    if head_dim % 8 or head_dim > WIDEST:
        return f"FlashAttention takes heads of multiples of 8 up to {WIDEST}, not {head_dim}"
    # Asked where there is a device alone: to look takes as long as importing torch, whose compiler it brings.
    if torch.cuda.is_available() and not _has_window():
        return f"torch {torch.__version__} gives FlashAttention no window"
    return ""


def _has_window() -> bool:
    return {"scale", "window_size"} <= _taken().keys()


def takes(q: Tensor, context: Context) -> bool:
    """Say whether FlashAttention knows all that matters: half precision on CUDA, whole rows, no bias on scores."""
    return q.is_cuda and computed_in(q) in HALF and context.plain and not context.scored and not context.asked


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, context: Context, *, scale: float, before: int, after: int
) -> Tensor:
    """Mix the values of the tokens up to `before` before each and `after` behind it (Dao 2023).

    q (B, T, H, D); k, v (B, T, K, D) with K dividing H. Returns (B, T, H, D), in half precision.
    """
    from torch.nn.attention.varlen import varlen_attn

    rows, length = q.shape[:2]
    bounds = context.once(
        "rows", lambda: torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=q.device)
    )
    half = computed_in(q)
    q, k, v = (t.to(half).flatten(0, 1) for t in (q, k, v))
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _taken() and q.shape[1] != k.shape[1] else {}
    mixed = varlen_attn(q, k, v, bounds, bounds, length, length, scale=scale, window_size=(before, after), **grouped)
    found: Tensor = cast(Tensor, mixed).unflatten(0, (rows, length))
    return found


def _find() -> dict[str, object]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return {}
    return dict(inspect.signature(varlen_attn).parameters)


_known: dict[str, object] = {}


def _taken() -> dict[str, object]:
    """Return the parameters that torch's call of FlashAttention takes, by name."""
    if not _known:
        _known.update(_find() or {"": None})
    return _known
