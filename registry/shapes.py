"""Gives what common operations return on the meta device without torch's own rules, which load its compiler first.

That takes longer than importing torch. An operation that is not known here is left to torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Rule = Callable[..., Any]

COMPARISONS = {aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge, aten.logical_not, aten.logical_and}
# Pointwise operations that keep whole numbers whole; the others are asked for floating ones alone.
WHOLE = {
    aten.add, aten.sub, aten.mul, aten.neg, aten.abs, aten.remainder, aten.where, aten.clamp, aten.bitwise_and,
    aten.bitwise_or, aten.bitwise_not, aten.masked_fill, aten.minimum, aten.maximum,
}  # fmt: skip


def rule_of(func: Any) -> Rule | None:
    """Return what gives the results of an operation on tensors of the meta device; None where it is not known here.

    A rule returns NotImplemented where it does not know the case.
    """
    written = func._schema.arguments and func._schema.arguments[0].alias_info
    if written is not None and written.is_write:
        return None if torch.Tag.inplace_view in func.tags else lambda x, *_, **__: x
    if [argument.name for argument in func._schema.arguments if argument.is_out] == ["out"]:
        return lambda *_, out, **__: out
    if func.overloadpacket in RULES:
        return RULES[func.overloadpacket]
    return functools.partial(_pointwise, func.overloadpacket) if torch.Tag.pointwise in func.tags else None


def _new(shape: Sequence[int], dtype: torch.dtype | None) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _dense(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor without gaps whose dimensions lie in memory in the order of those of another."""
    strides = like.stride()
    order = sorted(range(like.dim()), key=lambda d: (-strides[d], d))
    flat = _new([like.shape[d] for d in order], dtype or like.dtype)
    return flat if order == list(range(like.dim())) else flat.permute([order.index(d) for d in range(like.dim())])


def _pointwise(packet: Any, *args: Any, **options: Any) -> Any:
    flat = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else (arg,))]
    tensors = [x for x in flat if isinstance(x, Tensor)]
    shape = _broadcast([t.shape for t in tensors])
    valued = tensors[1:] if packet is aten.where else tensors
    dtype = valued[0].dtype
    for other in valued[1:]:
        if other.dtype is not dtype:
            dtype = torch.result_type(_new([1] * min(1, valued[0].dim()), dtype), other)
    if packet in COMPARISONS:
        dtype = torch.bool
    elif not dtype.is_floating_point:
        if packet not in WHOLE or any(isinstance(x, float) for x in flat):
            return NotImplemented
        if dtype is torch.bool and any(type(x) is int for x in flat):
            dtype = torch.int64
    like = next((t for t in tensors if t.shape == shape and 0 not in t.stride()), None)
    return _new(shape, dtype) if like is None else _dense(like, dtype)


def _broadcast(shapes: Sequence[Sequence[int]]) -> torch.Size:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return torch.Size(next((n for n in column if n != 1), 1) for column in zip(*padded, strict=True))


def _reduced(dtype: torch.dtype | None) -> Rule:
    """Return the rule of a reduction to a dtype, that of its input when None."""

    def rule(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False, **options: Any) -> Any:
        dims = range(x.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
        gone = {d % max(1, x.dim()) for d in dims}
        shape = [1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone]
        return _new(shape, options.get("dtype") or dtype or x.dtype)

    return rule


def _sum(x: Tensor, *args: Any, **options: Any) -> Any:
    return _reduced(None if x.dtype.is_floating_point else torch.int64)(x, *args, **options)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    first = tensors[0]
    if any(t.dim() != first.dim() or t.dtype is not first.dtype for t in tensors):
        return NotImplemented
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return _new(shape, first.dtype)


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return _new(shape, tensors[0].dtype)


def _like(x: Tensor, *args: Any, **options: Any) -> Any:
    if options.get("memory_format") is torch.contiguous_format:
        return _new(x.shape, options.get("dtype") or x.dtype)
    return _dense(x, options.get("dtype"))


def _made(size: Sequence[int], *args: Any, **options: Any) -> Any:
    if options.get("dtype") is None and args:  # `full`, whose value says what it is
        return NotImplemented
    return _new(size, options.get("dtype"))


def _new_made(x: Tensor, size: Sequence[int], *args: Any, **options: Any) -> Any:
    return _new(size, options.get("dtype") or x.dtype)


def _arange(start: Any, end: Any = None, step: Any = 1, **options: Any) -> Any:
    start, end = (0, start) if end is None else (start, end)
    whole = all(isinstance(x, int) for x in (start, end, step))
    return _new([math.ceil((end - start) / step)], options.get("dtype") or (torch.int64 if whole else None))


def _pad(x: Tensor, pad: Sequence[int], value: Any = 0) -> Any:
    shape = list(x.shape)
    for i in range(len(pad) // 2):
        shape[-1 - i] += pad[2 * i] + pad[2 * i + 1]
    return _new(shape, x.dtype)


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Any:
    given = [d for d, index in enumerate(indices) if index is not None]
    if given[-1] - given[0] >= len(given) or any(i is not None and i.dtype is not torch.int64 for i in indices):
        return NotImplemented
    chosen = _broadcast([index.shape for index in indices if index is not None])
    return _new([*x.shape[: given[0]], *chosen, *x.shape[given[-1] + 1 :]], x.dtype)


def _repeat(x: Tensor, times: Sequence[int]) -> Any:
    sizes = [1] * (len(times) - x.dim()) + list(x.shape)
    return _new([n * t for n, t in zip(sizes, times, strict=True)], x.dtype)


def _layer_norm(x: Tensor, shape: Sequence[int], *args: Any) -> Any:
    rows = [*x.shape[: x.dim() - len(shape)], *(1 for _ in shape)]
    return _new(x.shape, x.dtype), _new(rows, x.dtype), _new(rows, x.dtype)


def _layer_norm_backward(
    gradient: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, rstd: Tensor, weight: Any, bias: Any, wanted: Any
) -> Any:
    given = (x, weight, bias)
    return tuple(_new(t.shape, t.dtype) if want else None for t, want in zip(given, wanted, strict=True))


def _convolution(
    x: Tensor, w: Tensor, bias: Any, stride: Any, pad: Any, dilation: Any, turned: bool, *args: Any
) -> Any:
    if turned:
        return NotImplemented
    sides = zip(x.shape[2:], w.shape[2:], stride, pad, dilation, strict=True)
    return _new([x.shape[0], w.shape[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)], x.dtype)


def _convolution_backward(gradient: Tensor, x: Tensor, w: Tensor, bias: Any, *args: Any) -> Any:
    shapes = (x.shape, w.shape, bias)
    return tuple(_new(shape, x.dtype) if want else None for shape, want in zip(shapes, args[-1], strict=True))


def _heads_last(x: Tensor) -> Tensor:
    batch, heads, length, width = x.shape
    return _new([batch, length, heads, width], x.dtype).transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Any:
    return _heads_last(q), _new([q.shape[0], q.shape[2], q.shape[1]], torch.float32).transpose(1, 2)


def _attention_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Any:
    return _heads_last(q), _heads_last(k), _heads_last(v)


RULES: dict[Any, Rule] = {
    aten.mm: lambda a, b: _new([a.shape[0], b.shape[1]], a.dtype),
    aten.bmm: lambda a, b: _new([*a.shape[:2], b.shape[2]], a.dtype),
    aten.addmm: lambda c, a, b, **_: _new([a.shape[0], b.shape[1]], a.dtype),
    aten.baddbmm: lambda c, a, b, **_: _new([*a.shape[:2], b.shape[2]], a.dtype),
    aten._unsafe_view: lambda x, size: x.view(size),
    aten.sum: _sum,
    aten.mean: _reduced(None),
    aten.logsumexp: _reduced(None),
    aten.argmax: _reduced(torch.int64),
    aten.any: _reduced(torch.bool),
    aten.cumsum: lambda x, dim, **_: _new(x.shape, x.dtype if x.dtype.is_floating_point else torch.int64),
    aten.cat: _cat,
    aten.stack: _stack,
    aten.embedding: lambda table, ids, *_: _new([*ids.shape, table.shape[1]], table.dtype),
    aten.embedding_dense_backward: lambda g, ids, rows, *_: _new([rows, g.shape[-1]], g.dtype),
    aten.masked_fill: lambda x, mask, value: _new(_broadcast([x.shape, mask.shape]), x.dtype),
    aten.sort: lambda x, *_, **__: (_dense(x), _dense(x, torch.int64)),
    aten.scatter_add: lambda x, *_: _dense(x),
    aten.index_put: lambda x, *_: _dense(x),
    aten.flip: lambda x, dims: _dense(x),
    aten.tril: lambda x, *_: _dense(x),
    aten.elu_backward: lambda gradient, *_: _dense(gradient),
    aten.slice_backward: lambda gradient, size, *_: _new(size, gradient.dtype),
    aten.select_backward: lambda gradient, size, *_: _new(size, gradient.dtype),
    aten.unfold_backward: lambda gradient, size, *_: _new(size, gradient.dtype),
    aten.scalar_tensor: lambda value, **options: _new([], options.get("dtype")),
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten._log_softmax: lambda x, dim, half: _new(x.shape, x.dtype),
    aten._log_softmax_backward_data: lambda gradient, y, dim, dtype: _new(gradient.shape, dtype),
    aten.nll_loss_forward: lambda x, *_: (_new([], x.dtype), _new([], x.dtype)),
    aten.nll_loss_backward: lambda gradient, x, *_: _new(x.shape, x.dtype),
    aten.floor_divide: lambda x, by: _new(x.shape, x.dtype) if isinstance(by, int) else NotImplemented,
    aten.index: _index,
    aten.repeat: _repeat,
    aten.roll: lambda x, *_: _new(x.shape, x.dtype),
    aten.gather: lambda x, dim, index, **_: _new(index.shape, x.dtype),
    aten.clone: _like,
    aten.empty_like: _like,
    aten.zeros_like: _like,
    aten.ones_like: _like,
    aten.full_like: _like,
    aten.zeros: _made,
    aten.ones: _made,
    aten.full: _made,
    aten.new_empty: _new_made,
    aten.new_zeros: _new_made,
    aten.new_ones: _new_made,
    aten.new_full: _new_made,
    aten.arange: _arange,
    aten.constant_pad_nd: _pad,
    aten._softmax: lambda x, dim, half: _new(x.shape, x.dtype),
    aten._safe_softmax: lambda x, dim, *_: _new(x.shape, x.dtype),
    aten._softmax_backward_data: lambda gradient, y, dim, dtype: _new(gradient.shape, dtype),
    aten.native_layer_norm: _layer_norm,
    aten.native_layer_norm_backward: _layer_norm_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
