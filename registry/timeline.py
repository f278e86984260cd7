"""Cuts one pass over an outlined model into what each block adds, and puts the whole model's pass together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.stack import Stack
from ..core.topology import Topology
from .meter import Meter

Place = tuple[str, int, str]
"""A stack's name, the number of a block in it, and which way it is passed."""

FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class Segment:
    """Hold what one stretch of a pass did: bytes that it left behind, the most that it had besides, and FLOPs."""

    place: Place | None
    left: int
    peak: int
    flops: int


class Timeline:
    """Record one pass over a model whose stacks `Stack` runs, while it is the context."""

    def __init__(self, model: Topology, stacks: Sequence[str], meter: Meter) -> None:
        self.model = model
        self.stacks = stacks
        self.meter = meter
        self.segments: list[Segment] = []
        self._open: Place | None = None
        self._start = (meter.live, meter.flops)
        self._backward = False

    def __enter__(self) -> Timeline:
        self._hooks = [
            hook
            for name in self.stacks
            for index, block in enumerate(self._stack(name).blocks)
            for hook in (
                block.register_forward_pre_hook(lambda _, given, at=(name, index): self._enter(at, given[0])),
                block.register_forward_hook(lambda _, given, out, at=(name, index): self._leave(at, out[0])),
            )
        ]
        self._start = (self.meter.live, self.meter.flops)
        self.meter.peak = self.meter.live
        return self

    def __exit__(self, *raised: object) -> None:
        self._mark(None)
        for hook in self._hooks:
            hook.remove()

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass."""
        self._backward = True
        # Not `loss.backward()`, inside which no mode for functions is on: activations may be computed again there.
        torch.autograd.Variable._execution_engine.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )

    def whole(self, layers: Mapping[str, Sequence[int]]) -> Iterator[Segment]:
        """Yield the segments of the whole model; `layers` gives the equal block's number for each layer of a stack."""
        known = {segment.place: segment for segment in self.segments if segment.place is not None}
        done = set()
        for segment in self.segments:
            if segment.place is None:
                yield segment
                continue
            stack, _, way = segment.place
            if (stack, way) in done:
                continue
            done.add((stack, way))
            blocks = layers[stack] if way == FORWARD else reversed(layers[stack])
            yield from (known[stack, block, way] for block in blocks if (stack, block, way) in known)

    def _stack(self, name: str) -> Stack:
        stack = getattr(self.model, name)
        assert isinstance(stack, Stack)
        return stack

    def _enter(self, at: tuple[str, int], x: Tensor) -> None:
        if self._backward:  # activations that are computed once more belong to the backward pass
            return
        self._mark((*at, FORWARD))
        if x.requires_grad:
            x.register_hook(lambda _: self._returned(at))

    def _leave(self, at: tuple[str, int], y: Tensor) -> None:
        if self._backward:
            return
        self._mark(None)
        if y.requires_grad:
            y.register_hook(lambda _: self._mark((*at, BACKWARD)))

    def _returned(self, at: tuple[str, int]) -> None:
        """End a block's backward pass, unless that of the block before it has begun by the same gradient."""
        if self._open == (*at, BACKWARD):
            self._mark(None)

    def _mark(self, opens: Place | None) -> None:
        meter, (live, flops) = self.meter, self._start
        self.segments.append(Segment(self._open, meter.live - live, meter.peak - live, meter.flops - flops))
        self._open = opens
        self._start = (meter.live, meter.flops)
        meter.peak = meter.live


def most_alive(segments: Iterable[Segment]) -> tuple[int, int]:
    """Return the most bytes alive at once in a pass, and all its FLOPs."""
    live = peak = flops = 0
    for segment in segments:
        peak = max(peak, live + segment.peak)
        live += segment.left
        flops += segment.flops
    return peak, flops


def meta(given: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return tensors as they look on the meta device."""
    return {name: tensor.to("meta") for name, tensor in given.items()}


def inputs_of(model: Topology, batch: int, tokens: int) -> dict[str, Tensor]:
    """Return inputs of the declared shapes, without padding, on the meta device."""
    declared = {name: put for graph in model.graphs().values() for name, put in graph.inputs.items()}
    return {
        name: torch.empty(
            [batch if dim == "batch" else tokens if isinstance(dim, str) else dim for dim in put.dims],
            dtype=torch.int64 if put.dtype == "int64" else torch.float32,
            device="meta",
        )
        for name, put in declared.items()
        if not name.endswith("mask")
    }
