"""Count what a pass costs: operations by torch's own formulas, and the most bytes that live at once."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

# The CPU's fused attention has no formula in torch's table: forward takes q, k, v, backward their gradient before them.
FLASH: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda d, q, k, v, *_: sdpa_backward_flop_count(d, q, k, v)
    ),
}


class Costs(TorchDispatchMode):
    """Count while a pass runs.

    `work`: operations. Products, convolutions and fused attention by torch's formulas, two for a multiplication and
    addition; any other operation counts one for each element that it gives, and views nothing. `peak`: most bytes of
    tensors made here that lived at once, saved ones included; what a kernel uses inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = 0
        self.peak = 0
        self._live = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        own = {self._key(t) for t in _tensors((*args, *kwargs.values()))}
        out = function(*args, **kwargs)
        tensors = _tensors(out if isinstance(out, tuple | list) else (out,))
        packet = function._overloadpacket
        if packet in FLASH:
            self.work += FLASH[packet](*(t.shape for t in args if isinstance(t, Tensor)))
        elif packet in flop_registry:
            self.work += flop_registry[packet](*args, **kwargs, out_val=out)
        else:
            self.work += sum(t.numel() for t in tensors if self._key(t) not in own)
        for tensor in tensors:
            self._watch(tensor, own)
        return out

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)

    def _watch(self, tensor: Tensor, own: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in own:
            return
        self._live += size
        self.peak = max(self.peak, self._live)
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self._live -= size


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found = []
    for value in values:
        found += _tensors(value) if isinstance(value, list | tuple) else [value] if isinstance(value, Tensor) else []
    return found


def training_costs(compute: Callable[[Tensor], Tensor], x: Tensor) -> Costs:
    """Return what one forward and backward pass of `compute` over x costs."""
    costs = Costs()
    with costs:
        compute(x.requires_grad_()).sum().backward()
    return costs


def slope(lengths: Sequence[int], costs: Sequence[float]) -> float:
    """Return the exponent of a cost against length: the least-squares slope between the logarithms."""
    xs, ys = [math.log(n) for n in lengths], [math.log(c) for c in costs]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    top = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return top / sum((x - mean_x) ** 2 for x in xs)
