"""Sums of outer products that a state carries as one operator of ONNX Runtime."""

from __future__ import annotations

import torch
from torch import Tensor

RULES = {(False, False): "linear", (True, False): "gated", (False, True): "delta", (True, True): "gated_delta"}
"""How a state goes on: by whether it fades, and whether it is corrected."""


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, before: Tensor, *, log_decay: Tensor | None = None, share: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Carry h_t = exp(log_decay_t) h_(t-1) + k_t u_t^T and read y_t = h_t^T q_t, by com.microsoft LinearAttention.

    For a graph that is being exported; all are fp32. q (B, T, G, D); k (B, T, K, D); v (B, T, H, E); `before`
    (B, H, D, E). `log_decay` (B, T, H), or (B, T, H, D) where each entry of a key fades by itself; None where nothing
    fades. u_t is v_t, or with `share` (B, T, H) what is missing: share_t (v_t - (exp(log_decay_t) h_(t-1))^T k_t). The
    heads of a group share q and k, or heads of q share a state. Returns y (B, T, max(G, H), E) and the last h. The
    operator takes any number of tokens, and goes from one to the next.
    """
    heads = max(q.shape[2], v.shape[2])
    inputs: list[Tensor | None] = [t.flatten(2) for t in (q, k, v)]
    inputs += [before, None if log_decay is None else log_decay.flatten(2), share]
    while inputs[-1] is None:
        inputs.pop()
    y, last = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::LinearAttention",
        inputs,
        attrs={
            "q_num_heads": q.shape[2], "kv_num_heads": v.shape[2], "scale": 1.0,
            "update_rule": RULES[log_decay is not None, share is not None],
        },
        dtypes=(v.dtype, before.dtype),
        shapes=((*v.shape[:2], heads * v.shape[3]), tuple(before.shape)),
        version=1,
    )  # fmt: skip
    return y.unflatten(2, (heads, v.shape[3])), last
