"""Softmax attention on CPU in slices: each block of queries meets the few stretches of keys that it may see.

It calls the kernels that torch runs under its own attention on CPU, forwards and backwards, and adds the gradients of
keys and values up in place: nothing is gathered for all blocks at once, and no gradient is scattered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import Context
from .linear import at_least_fp32, computed_in
from .softmax import softmax_reference

_FORWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
LEAST, MOST = 64, 256


@dataclass(frozen=True, eq=False)
class Slice:
    """Say what the queries of columns `start` to `stop` see: the keys of `runs`, stretches (first, end) in order.

    `hidden` (stop - start, keys of all runs) bool: True where a key of the runs is not seen; None for nowhere.
    """

    start: int
    stop: int
    runs: tuple[tuple[int, int], ...]
    hidden: Tensor | None


def unfit() -> str:
    """Say why no slices can be taken here; empty where they can."""
    return (
        "" if _FORWARD and _BACKWARD else f"torch {torch.__version__} has no attention kernels of CPU under this name"
    )


def takes(q: Tensor, k: Tensor, v: Tensor, context: Context) -> bool:
    """Say whether slices serve: on CPU, run as it stands, whole rows, no bias on scores, one number format and width.

    The meta device counts as CPU, so that estimates read what CPU does.
    """
    return (
        q.device.type in ("cpu", "meta")
        and not unfit()
        and context.plain
        and not context.scored
        and not context.asked
        and q.numel() > 0
        and computed_in(q) == computed_in(k) == computed_in(v)
        and q.shape[-1] == v.shape[-1]
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def window_slices(length: int, window: int, *, causal: bool, device: torch.device, first: int = 0) -> list[Slice]:
    """Cut `length` queries into slices that see keys at a distance below `window`, before them or on both sides.

    `first`: of how many first tokens the keys are seen besides. A slice has a quarter of the window, 64 at least and
    256 at most: less costs a call each, more forms scores that are hidden again.
    """
    size = max(LEAST, min(MOST, window // 4))
    reach = window - 1
    right = 0 if causal else reach
    first = min(first, length)
    row = torch.arange(size, device=device).unsqueeze(1)
    column = torch.arange(-reach, size + right, device=device).unsqueeze(0)
    hidden = (column - row > right) | (row - column > reach)
    found = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        begin, end = max(0, start - reach), min(length, stop + right)
        skipped = begin - start + reach
        shown = hidden[: stop - start, skipped : skipped + end - begin]
        if begin < first:  # the first tokens and the window are one stretch
            begin, end = 0, max(end, first)
            ahead = torch.arange(end, device=device) - torch.arange(start, stop, device=device).unsqueeze(1)
            beyond = torch.arange(end, device=device) >= first
            shown = (ahead > 0 if causal else (ahead > right) & beyond) | ((-ahead > reach) & beyond)
        apart = 0 < first <= begin
        runs = ((0, first), (begin, end)) if apart else ((begin, end),)
        found.append(Slice(start, stop, runs, F.pad(shown, (first, 0)) if apart else shown))
    return found


def block_slices(chosen: Sequence[Sequence[int]], block: int, length: int, *, causal: bool, device: Any) -> list[Slice]:
    """Let each block of `block` queries see the blocks of keys that its row of `chosen` lists in order, ended by -1.

    `causal`: no block is listed that is later than the row's own, and none of its tokens sees later ones.
    """
    triangle = torch.ones(block, block, dtype=torch.bool, device=device).triu(1)
    found = []
    for start, listed in zip(range(0, length, block), chosen, strict=True):
        stop, runs = min(start + block, length), _runs(listed, block, length)
        hidden = None
        if causal:
            own = stop - start
            hidden = torch.zeros(own, sum(end - first for first, end in runs), dtype=torch.bool, device=device)
            hidden[:, -own:] = triangle[:own, :own]
        found.append(Slice(start, stop, runs, hidden))
    return found


def _runs(listed: Sequence[int], block: int, length: int) -> tuple[tuple[int, int], ...]:
    """Return the stretches of columns that blocks cover, neighbours as one."""
    runs: list[tuple[int, int]] = []
    for number in listed:
        first, end = number * block, min((number + 1) * block, length)
        if number < 0 or first >= length:
            continue
        if runs and runs[-1][1] == first:
            first = runs.pop()[0]
        runs.append((first, end))
    return tuple(runs)


def sliced_attention(q: Tensor, k: Tensor, v: Tensor, slices: Sequence[Slice], *, scale: float) -> Tensor:
    """Mix the values that the slices let each query see.

    q (B, T, H, D); k, v (B, S, K, D) with K dividing H; the slices cover all T, and each query sees a key at least.
    Returns (B, T, H, D). Gradients of gradients are those of the definition, over all pairs.
    """
    q, k, v = (t.to(computed_in(t)) for t in (q, k, v))
    return cast(Tensor, _Sliced.apply(q, k, v, slices, scale))  # type: ignore[no-untyped-call]


class _Sliced(torch.autograd.Function):
    """Run torch's kernel slice by slice, and backwards again, keeping of the scores the logarithms of their sums."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, slices: Sequence[Slice], scale: float) -> Tensor:
        y = torch.empty_like(q, memory_format=torch.contiguous_format)
        sums = []
        assert _FORWARD is not None
        for each in slices:
            taken, groups = slice(each.start, each.stop), q.shape[2] // k.shape[2]
            mixed, total = _FORWARD(
                _queries(q[:, taken], groups), _keys(k, each), _keys(v, each),
                attn_mask=_mask(each, groups, q.dtype), scale=scale,
            )  # fmt: skip
            y[:, taken] = _columns(mixed, groups)
            sums.append(total)
        ctx.save_for_backward(q, k, v, y, *sums)
        ctx.slices, ctx.scale = slices, scale
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, *sums = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody will ask for gradients of these: the kernel has none
            mask = _seen(ctx.slices, q.shape[1], k.shape[1], q.device)
            again = softmax_reference(q, k, v, mask, None, ctx.scale)[0]
            needed = [t for t, asked in zip((q, k, v), ctx.needs_input_grad, strict=False) if asked]
            found = iter(torch.autograd.grad(again, needed, grad, create_graph=True))
            return *(next(found) if asked else None for asked in ctx.needs_input_grad[:3]), None, None
        assert _BACKWARD is not None
        groups = q.shape[2] // k.shape[2]
        d_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        d_k, d_v = (torch.zeros_like(at_least_fp32(t), memory_format=torch.contiguous_format) for t in (k, v))
        for each, total in zip(ctx.slices, sums, strict=True):
            taken = slice(each.start, each.stop)
            by_query, by_key, by_value = _BACKWARD(
                _queries(grad[:, taken], groups), _queries(q[:, taken], groups), _keys(k, each), _keys(v, each),
                _queries(y[:, taken], groups), total, 0.0, False,
                attn_mask=_mask(each, groups, q.dtype), scale=ctx.scale,
            )  # fmt: skip
            d_q[:, taken] = _columns(by_query, groups)
            begin = 0
            for first, end in each.runs:
                came = slice(begin, begin + end - first)
                d_k[:, first:end] += by_key[:, :, came].transpose(1, 2)
                d_v[:, first:end] += by_value[:, :, came].transpose(1, 2)
                begin = came.stop
        return d_q, d_k.to(k.dtype), d_v.to(v.dtype), None, None


def _queries(x: Tensor, groups: int) -> Tensor:
    """Return x (B, T, K * G, D) as the kernel takes it: heads of one group as further queries, (B, K, G * T, D)."""
    if groups > 1:
        x = x.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    else:
        x = x.transpose(1, 2)
    return x if x.stride(-1) == 1 else x.contiguous()


def _columns(x: Tensor, groups: int) -> Tensor:
    """Return what `_queries` was given, (B, T, K * G, D)."""
    if groups == 1:
        return x.transpose(1, 2)
    columns: Tensor = x.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return columns


def _keys(x: Tensor, each: Slice) -> Tensor:
    """Return the keys or values of a slice, (B, K, S, D)."""
    runs = [x[:, first:end] for first, end in each.runs]
    x = (runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)).transpose(1, 2)
    return x if x.stride(-1) == 1 else x.contiguous()


def _mask(each: Slice, groups: int, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to the scores of a slice, (1, 1, G * T, S)."""
    if each.hidden is None:
        return None
    mask = torch.zeros(each.hidden.shape, dtype=dtype, device=each.hidden.device)
    mask.masked_fill_(each.hidden, float("-inf"))
    mask = mask if groups == 1 else mask.repeat(groups, 1)
    return mask.unsqueeze(0).unsqueeze(0)


def _seen(slices: Sequence[Slice], length: int, keys: int, device: torch.device) -> Tensor:
    """Return who sees whom, (1, T, S) bool."""
    seen = torch.zeros(1, length, keys, dtype=torch.bool, device=device)
    for each in slices:
        begin = 0
        for first, end in each.runs:
            shown = True if each.hidden is None else ~each.hidden[:, begin : begin + end - first]
            seen[0, each.start : each.stop, first:end] = shown
            begin += end - first
    return seen
