"""Runs a model on the meta device and reads off what it would cost on a CPU: FLOPs, and bytes alive at each moment."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .shapes import Rule, rule_of

aten = torch.ops.aten


class Meter(TorchDispatchMode):
    """Count floating-point operations, and the bytes of the tensors that are made and still alive.

    `live`: bytes alive now. `peak`: the most alive at once since `peak` was last set. `flops`: of products of matrices,
    two for each pair of numbers multiplied, a causal triangle counted whole; all else is left out.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.flops = 0
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._known: dict[Any, tuple[Rule | None, Callable[..., int] | None]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here: to be kept out of it would only load the compiler, which takes longer than torch.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._known:
            packet = func.overloadpacket
            self._known[func] = rule_of(func), _FLOPS.get(packet) or flop_registry.get(packet)
        rule, count = self._known[func]
        out = NotImplemented
        if rule is not None and _on_meta(args, kwargs):
            out = rule(*args, **kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, Tensor):
                self.hold(made)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's memory until nothing refers to it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._held:
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            self._held[key] = weakref.ref(storage, lambda _: self._free(key, size))

    def _free(self, key: int, size: int) -> None:
        del self._held[key]
        self.live -= size


def _on_meta(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Say whether an operation is asked for on the meta device: by its tensors, or by where it makes one."""
    device = kwargs.get("device")
    if device is not None:
        return torch.device(device).type == "meta"
    first = args[0][0] if args and isinstance(args[0], (list, tuple)) and args[0] else args[0] if args else None
    return isinstance(first, Tensor) and first.is_meta


class CpuKernels(TorchFunctionMode):
    """Stay on the meta device, and take there the kernels that a CPU takes, where the two differ.

    `low`: the number format that autocast gives to products; None without autocast. `formed`: filled with the reason
    for each attention whose kernel forms all scores.
    """

    def __init__(self, meter: Meter, low: torch.dtype | None = None) -> None:
        super().__init__()
        self.meter = meter
        self.low = low
        self.formed: list[str] = []
        self._casts: dict[int, Tensor] = {}

    def forget(self) -> None:
        """End a forward pass: weights in the low format are no longer kept for others to use."""
        self._casts.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAKING and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        if self.low is not None and func in _PRODUCTS:
            args = tuple(map(self._lowered, args))
            kwargs = {name: self._lowered(x) for name, x in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is torch.lstm and args[3:] in _LSTMS:
            # The steps are inside of the kernel (oneDNN's).
            y = _Lstm.apply(self.meter, args[0], *args[2])  # type: ignore[no-untyped-call]
            return y, *map(torch.empty_like, args[1])
        return func(*args, **kwargs)

    def _lowered(self, x: Any) -> Any:
        """Return a tensor in the low format; that of a weight is made once a pass."""
        if isinstance(x, list):
            return [self._lowered(each) for each in x]
        if not isinstance(x, Tensor) or x.dtype is not torch.float32:
            return x
        if not x.requires_grad or not x.is_leaf:
            return x.to(self.low)
        if id(x) not in self._casts:
            self._casts[id(x)] = x.to(self.low)
        return self._casts[id(x)]

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Choose as torch does on a CPU: its fused kernel, unless that can't give a gradient that is needed."""
        why = ""
        if attn_mask is not None and attn_mask.requires_grad:
            why = "what is added to the scores is learned"
        elif q.shape[-1] != v.shape[-1]:
            why = "keys and values differ in width"
        elif dropout_p:
            why = "weights are dropped"
        if why:
            if why not in self.formed:
                self.formed.append(why)
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            attn_mask = torch.where(attn_mask, torch.zeros((), dtype=q.dtype, device=q.device), float("-inf"))
        out: Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
        return out


# With biases, of one layer, without dropout, for x (B, T, C); one direction or both.
_LSTMS = [(True, 1, 0.0, False, both, True) for both in (False, True)]


class _Lstm(torch.autograd.Function):
    """Stand for an LSTM over x (B, T, C); all that its steps keep is one workspace for each direction."""

    @staticmethod
    def forward(ctx: Any, meter: Meter, x: Tensor, *weights: Tensor) -> Tensor:
        length, batch, width = x.shape[1], x.shape[0], weights[1].shape[1]
        columns = x.transpose(0, 1).contiguous()
        # As measured: four gates a step, and six vectors of states; room for their gradients is not touched yet.
        room = 4 * length + 6 * (length + 1)
        spaces = [x.new_empty(room * batch * width) for _ in range(0, len(weights), 4)]
        y = torch.cat([x.new_empty(length, batch, width) for _ in spaces], dim=-1)
        ctx.meter, ctx.work = meter, 2 * length * batch * sum(w.numel() for w in weights if w.dim() == 2)
        meter.flops += ctx.work
        ctx.save_for_backward(columns, y, *spaces, *weights)
        ctx.weights = len(weights)
        return y.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        columns, *rest = ctx.saved_tensors
        ctx.meter.flops += 2 * ctx.work
        touched = [torch.empty_like(space[: space.numel() // 2]) for space in rest[1 : -ctx.weights]]
        del touched
        return None, torch.empty_like(columns).transpose(0, 1), *map(torch.empty_like, rest[-ctx.weights :])


_MAKING = {torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.tensor, torch.zeros}
_PRODUCTS = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.einsum,
    torch.lstm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
}


def _attention_flops(q: Tensor, k: Tensor, v: Tensor, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    batch, heads, queries, width = q.shape
    return 2 * batch * heads * queries * k.shape[2] * (width + v.shape[3])


def _attention_backward_flops(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    batch, heads, queries, width = q.shape
    # The scores again, then the gradients of q, k, v and of the scores.
    return 2 * batch * heads * queries * k.shape[2] * (3 * width + 2 * v.shape[3])


_FLOPS: dict[Any, Callable[..., int]] = {
    aten.addmm_: flop_registry[aten.addmm],
    aten.baddbmm_: flop_registry[aten.baddbmm],
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
