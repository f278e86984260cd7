"""Softmax attention over given keys: the definition, and the same through torch's fused kernel."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import is_exporting
from .context import Context
from .linear import at_least_fp32


def softmax_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute softmax attention from its definition (Vaswani et al. 2017), and return the weights too.

    q (B, T, H, D); k, v (B, S, K, D) with K dividing H; mask (B or 1, T, S) bool, True where seen; bias (B or 1, H, T,
    S) on the scaled scores, which stay within `cap` of 0 where there is one: cap * tanh(score / cap), before the bias.
    Returns (B, T, H, D) and the weights (B, H, T, S). A row that sees nothing gives 0.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    scores = torch.einsum("bthd,bshd->bhts", at_least_fp32(q), at_least_fp32(k)) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1)
    if mask is not None:
        weights = weights * mask.unsqueeze(1)
    return torch.einsum("bhts,bshd->bthd", weights, at_least_fp32(v)).to(v.dtype), weights


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Compute softmax attention with torch's fused kernel, or by its definition where scores are capped.

    q (B, T, H, D); k, v (B, S, K, D) with K dividing H; mask (B or 1, T, S) bool, True where seen; bias (B or 1, H, T,
    S) on the scaled scores. Returns (B, T, H, D). A row that sees nothing gives 0. `cap` is `softmax_reference`'s.

    `causal` stands for the lower triangle where no mask is needed besides it (T = S): its kernel skips what lies above.
    """
    if is_exporting() and cap is None:
        return _as_operator(q, k, v, scale=scale, causal=causal, mask=mask, bias=bias)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    return by_head(q, k, v, scale=scale, causal=causal, mask=mask, bias=bias, cap=cap)


def by_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Compute `softmax_attention` of k and v that stand head by head, (B, K, S, D)."""
    assert mask is None or not causal, "the triangle is part of the mask"
    if cap is not None:  # no kernel knows it
        if causal:
            mask = torch.ones(q.shape[1], k.shape[2], dtype=torch.bool, device=q.device).tril().unsqueeze(0)
        return softmax_reference(q, k.transpose(1, 2), v.transpose(1, 2), mask, bias, scale, cap)[0]
    mask, causal, empty = _added(q, k.shape[2], causal, mask, bias)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k,
        v,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[1],
    ).transpose(1, 2)
    return out if empty is None else out.masked_fill(empty.unsqueeze(-1), 0.0)


def _added(
    q: Tensor, keys: int, causal: bool, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, bool, Tensor | None]:
    """Return what a kernel takes for `keys` keys: a mask or what is added, whether causal; and which rows to empty."""
    empty: Tensor | None = None
    if mask is not None:
        # A row that sees nothing sees everything instead, and is then set to 0: no kernel is asked for 0 / 0.
        empty = ~mask.any(-1, keepdim=True)
        mask = (mask | empty).unsqueeze(1)
    if bias is not None:
        bias = bias.to(q.dtype)
        if causal:
            triangle = torch.ones(q.shape[1], keys, dtype=torch.bool, device=q.device).tril()
            mask, causal = triangle, False
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    return mask, causal, empty


def _as_operator(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool, mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Compute `softmax_attention` by one operator of a graph, which takes heads side by side: nothing is turned."""
    mask, causal, empty = _added(q, k.shape[1], causal, mask, bias)
    inputs = [q.flatten(2), k.flatten(2), v.flatten(2), *([] if mask is None else [mask])]
    attrs: dict[str, Any] = {
        "q_num_heads": q.shape[2],
        "kv_num_heads": k.shape[2],
        "scale": scale,
        "is_causal": int(causal),
    }
    size = (*q.shape[:2], q.shape[2] * v.shape[3])
    out = torch.onnx.ops.symbolic("Attention", inputs, attrs=attrs, dtype=v.dtype, shape=size)
    mixed: Tensor = out.unflatten(2, (q.shape[2], v.shape[3]))
    return mixed if empty is None else mixed.masked_fill(empty.unsqueeze(-1), 0.0)


def softmax_in(context: Context, q: Tensor, k: Tensor, v: Tensor, *, scale: float, cap: float | None = None) -> Tensor:
    """Mix the values of all tokens that the model's rule lets the new ones see, by the cheapest call of the kernel.

    q (B, T, H, D) of the new tokens; k, v of past and new ones, head by head: (B, K, S, D). Returns (B, T, H, D).
    """
    if q.is_cuda and context.past is not None:
        with _any_length():
            return _in(context, q, k, v, scale=scale, cap=cap)
    return _in(context, q, k, v, scale=scale, cap=cap)


def _any_length() -> AbstractContextManager[None]:
    """Return a context without cuDNN, which plans anew for each length, 9 ms: each step of a growing state is one."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _in(context: Context, q: Tensor, k: Tensor, v: Tensor, *, scale: float, cap: float | None) -> Tensor:
    plain = context.tokens.plain and context.slots is None and (context.past is None or context.past.plain)
    bias = context.score(context.tokens, None, q, k.transpose(1, 2)) if context.scored else None
    if plain and context.past is None:
        return by_head(q, k, v, scale=scale, causal=context.causal, bias=bias, cap=cap)
    if plain and q.shape[1] == 1:
        return by_head(q, k, v, scale=scale, bias=bias, cap=cap)
    mask = context.once("visible", lambda: context.visible(context.keys))
    return by_head(q, k, v, scale=scale, mask=mask, bias=bias, cap=cap)
