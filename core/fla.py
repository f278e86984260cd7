"""Sums over earlier tokens, fading ones and corrected ones, by the kernels of flash-linear-attention on CUDA."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from .flash import HALF
from .linear import computed_in


@cache
def missing() -> str:
    """Say why its kernels can't be had; empty where they can."""
    if find_spec("fla") is None:
        return "flash-linear-attention is not installed: pip install 'transom[cuda]'"
    return "" if find_spec("triton") is not None else "flash-linear-attention needs triton, which is not installed"


def there() -> bool:
    """Say whether its kernels can run here."""
    return not missing() and torch.cuda.is_available()


def takes(x: Tensor, doc: Tensor | None) -> bool:
    """Say whether its kernels know all that matters: half precision on CUDA, one document a row."""
    return x.is_cuda and doc is None and computed_in(x) in HALF and not missing()


def decaying_sums(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, first: Tensor | None, half: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return y_t = q_t h_t, (B, T, H, E), and the last h, of h_t = exp(log_decay_t) h_(t-1) + k_t v_t.

    q (B, T, H, D) or (B, T, G, D), k (B, T, G, D), v (B, T, H or G, E), groups of heads sharing what there are
    fewer of (Yang et al. 2024); log_decay (B, T, H), none for 1; `first` (B, H, D, E). Products are taken in `half`.
    """
    from fla.ops.simple_gla import chunk_simple_gla  # type: ignore[import-not-found, import-untyped, unused-ignore]

    heads = max(q.shape[2], v.shape[2])
    q, k, v = (t.to(half).repeat_interleave(heads // t.shape[2], dim=2) for t in (q, k, v))
    y, last = chunk_simple_gla(
        q, k, v, None if log_decay is None else log_decay.float(), scale=1.0,
        initial_state=None if first is None else first.float(), output_final_state=True,
    )  # fmt: skip
    return y, last


def corrected_sums(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, share: Tensor, first: Tensor, half: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return y_t = q_t S_t and the last S of the gated delta rule, S (B, H, D, E) (Yang, Kautz and Hatamizadeh 2025).

    q, k (B, T, G, D); v (B, T, H, E) with G dividing H; log_decay and share (B, T, H).
    """
    from fla.ops.gated_delta_rule import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        chunk_gated_delta_rule,
    )

    shared = v.shape[2] // k.shape[2]
    q, k = (t.to(half).repeat_interleave(shared, dim=2) for t in (q, k))
    y, last = chunk_gated_delta_rule(
        q, k, v.to(half), g=log_decay.float(), beta=share.to(half), scale=1.0,
        initial_state=first.float(), output_final_state=True,
    )  # fmt: skip
    return y, last
