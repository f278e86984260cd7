"""Softmax attention in slots as one operator of ONNX Runtime."""

from __future__ import annotations

import torch
from torch import Tensor

from .context import Context
from .position import Turns
from .projected import Projected
from .state import Memories


def grouped_query_attention(
    context: Context, projected: Projected, state: Memories, *, scale: float, cap: float | None = None
) -> tuple[Tensor, Memories]:
    """Write k and v to their slots and mix the values that the new tokens see, by com.microsoft GroupQueryAttention.

    For a graph that is being exported, of tokens that see no later ones. `state`: k and v of all slots, (B, K, S, D).
    Returns (B, T, H, D) and the next state.

    Padding stands behind the real tokens of a row here: what is written for it is seen by none of them, and the next
    real tokens overwrite it.
    """
    assert context.seen is not None
    turns = _turns(context, projected)
    if turns is None:
        projected = projected.turned(context)
    seen, (q, k, _) = context.seen, projected.apart()
    length = q.shape[1]
    # Positions may read all keys; for one that does not, they are left out of the graph.
    bias = context.score(context.tokens, None, q, context.append(state["k"], k.transpose(1, 2), dim=2).transpose(1, 2))
    last = context.once("last slot", lambda: (seen + (length - 1)).to(torch.int32))
    total = context.once("slots in use", lambda: last.amax(0, keepdim=True) + 1)
    if bias is not None:
        bias = _first(bias.to(q.dtype), total)
    size = (q.shape[0], length, q.shape[2] * q.shape[3])
    heads = [part.flatten(2) for part in projected.parts]
    table = [None, None] if turns is None else [turns.cos.to(q.dtype), turns.sin.to(q.dtype)]
    inputs = [*heads, *[None] * (3 - len(heads)), state["k"], state["v"], last, total, *table, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    mixed, past_k, past_v = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs,
        attrs={
            "num_heads": q.shape[2], "kv_num_heads": k.shape[2], "scale": scale, "softcap": cap or 0.0,
            "do_rotary": int(turns is not None), "rotary_interleaved": int(turns is not None and turns.interleaved),
        },
        dtypes=(q.dtype, q.dtype, q.dtype),
        shapes=(size, tuple(state["k"].shape), tuple(state["v"].shape)),
        version=1,
    )  # fmt: skip
    return mixed.unflatten(2, q.shape[2:]), {"k": past_k, "v": past_v}


def _turns(context: Context, projected: Projected) -> Turns | None:
    """Return by what table the operator is to turn heads; None where it is not, or can't by the one that there is."""
    # A score may be of what is in the keys, turned.
    turns = context.turning() if projected.turning and not context.scored else None
    return None if turns is None or projected.parts[0].shape[-1] % 16 or turns.cos.shape[1] % 8 else turns


def _first(bias: Tensor, total: Tensor) -> Tensor:
    """Return what positions add for the slots in use, bias (B or 1, H, T, S): the operator wants no more."""
    first, axis = (torch.full((1,), number, dtype=torch.int32) for number in (0, 3))
    inputs = [bias, first, total, axis]
    sliced: Tensor = torch.onnx.ops.symbolic("Slice", inputs, dtype=bias.dtype, shape=bias.shape)
    return sliced
