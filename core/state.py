"""What a model remembers between steps: declared once, for decoding, export, memory estimates and proofs alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError

Growth = Literal["append", "ring", "fixed", "static"]
BATCH, PAST, MEMORY = "batch", "past", "memory"
POS, SEEN = "pos", "seen"
"""What a state calls the positions of past tokens, where it has no slots, and how many there were."""


@dataclass(frozen=True)
class Remembered:
    """Declare one tensor of a sublayer's state.

    `dims`: the first is "batch"; "past" and "memory" are lengths known at run time, numbers are fixed.
    `grows`: `append` (one entry a token), `ring` (the newest entries), `fixed`, or `static` (primed once from memory).
    `dtype`: "model", "accumulate" (at least fp32: sums that grow with length) or "int64".
    `fill`: the value of an empty entry.
    """

    dims: tuple[str | int, ...]
    grows: Growth
    dtype: Literal["model", "accumulate", "int64"] = "model"
    fill: float = 0.0

    def empty(
        self, batch: int, memory: int, dtype: torch.dtype, device: torch.device, *, room: int | None = None
    ) -> Tensor:
        """Return the tensor before the first token, (batch, ...) as `dims` say, where `past` is 0, or `room`."""
        sizes = {BATCH: batch, PAST: room or 0, MEMORY: memory}
        shape = [sizes[d] if isinstance(d, str) else d for d in self.dims]
        return torch.full(shape, self.fill, dtype=self.torch_dtype(dtype), device=device)

    def nbytes(self, batch: int, length: int, model: torch.dtype = torch.float32) -> int:
        """Return the size in bytes after `length` tokens, of a memory as long."""
        sizes = [batch if d == BATCH else length if isinstance(d, str) else d for d in self.dims]
        return math.prod(sizes) * self.torch_dtype(model).itemsize

    def torch_dtype(self, model: torch.dtype) -> torch.dtype:
        """Return the tensor's dtype in a model of dtype `model`."""
        if self.dtype == "int64":
            return torch.int64
        return accumulation_dtype(model) if self.dtype == "accumulate" else model


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums over a whole sequence are kept: fp32, or wider when the model is."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


Declared = Mapping[str, Remembered]
"""A sublayer's declared state: name -> `Remembered`; empty when it remembers nothing."""

Memories = dict[str, Tensor]
"""A sublayer's state at run time, by the declared names."""


@dataclass(eq=False)  # and nothing is set later: a frozen one takes five times as long to make, at each step
class State:
    """Hold all that a model remembers after some tokens: a step takes one and returns the next.

    `tensors`: by name, `layers.0.attention.k`. Dimension 0 of each is the batch. `columns`: how many columns were fed,
    padding included. `padded`: how many were fed up to the last that may be padding; a state is cropped no further,
    as real tokens were moved to the left among them. `rewinder`: how to drop each row's last tokens, where every layer
    declares that it can. `room`: for how many columns there is room; what `append` declares then has that length from
    the start, and token i of a row stands in slot i. A step writes to the slots of its tokens, and uses up the state
    that it is given: to go back, go on from a `fork`. None: each step makes it longer, and leaves what it was given.
    `steady`: whether a step reads all slots, in use or not, and writes to them in place, so that it is like any other.
    """

    tensors: dict[str, Tensor]
    columns: int = 0
    padded: int = 0
    rewinder: Callable[[State, Tensor], State] | None = None
    room: int | None = None
    steady: bool = False

    @property
    def seen(self) -> Tensor:
        """Return how many real tokens each row has seen, (B,) int64."""
        return self.tensors["seen"]

    @property
    def nbytes(self) -> int:
        """Return the size of all tensors in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def reorder(self, rows: Tensor) -> State:
        """Return the state whose row i is row `rows[i]` of this one, rows (N,) int64: beams, or rows that go on."""
        return replace(self, tensors={name: t.index_select(0, rows) for name, t in self.tensors.items()})

    def fork(self) -> State:
        """Return a copy that nothing else writes to: going back means going on from a copy."""
        return replace(self, tensors={name: t.clone() for name, t in self.tensors.items()})

    def crop(self, length: int) -> State:
        """Return the state after the first `length` columns only.

        Raises:
            InputError: a layer's state does not keep what it would take to go back, or columns from `length` on came
                with a mask.
        """
        self._check_rewinder()
        if not 0 <= length <= self.columns:
            raise InputError(f"can't crop a state of {self.columns} columns to {length}")
        if length < self.padded:
            raise InputError(
                f"can't crop a state to {length} columns: {self.padded} came with a mask, and their padding is no "
                "longer where it was; go back to a fork()"
            )
        return self.rewind(torch.full_like(self.seen, self.columns - length))

    def rewind(self, dropped: Tensor) -> State:
        """Return the state without the last `dropped[i]` real tokens of row i, (B,) int64: at most those it has seen.

        Where rows keep different numbers, what was dropped within the columns that stay counts as padding.

        Raises:
            InputError: a layer's state does not keep what it would take to go back.
        """
        self._check_rewinder()
        assert self.rewinder is not None
        return self.rewinder(self, dropped)

    def _check_rewinder(self) -> None:
        if self.rewinder is None:
            raise InputError("this model's state can't be cropped: a layer forgets on the way; go back to a fork()")


def rewound(state: State, dropped: Tensor, declared: Declared, edges: Sequence[int] = ()) -> State:
    """Return a state, all of which grows with tokens, without the last `dropped[i]` real tokens of row i, (B,) int64.

    `edges`: sorted lengths that a row can't come back from: its keys were turned otherwise beyond them.
    """
    left = state.seen - dropped
    if edges and (edge := first_crossed(edges, left, state.seen)) is not None:
        raise InputError(
            f"can't crop a state of a row of more than {edge} tokens to {edge} or fewer: positions turn "
            "otherwise in shorter rows; begin anew"
        )
    tensors = state.tensors | {SEEN: left}
    if POS not in tensors:  # in slots: later tokens are written over what stands behind a row's last
        columns = int(left.max())
        uneven = bool((left != columns).any())
    else:
        real = tensors[POS] >= 0
        kept = real & (real.flip(1).cumsum(1).flip(1) > dropped.unsqueeze(1))
        columns = 1 + max(kept.any(0).nonzero().flatten().tolist(), default=-1)
        tensors[POS] = tensors[POS].masked_fill(~kept, -1)
        uneven = not bool(kept[:, :columns].all())
        for name, rule in declared.items():
            if rule.grows == "append":
                tensors[name] = tensors[name].narrow(rule.dims.index(PAST), 0, columns)
    return replace(state, tensors=tensors, columns=columns, padded=columns if uneven else min(state.padded, columns))


def first_crossed(edges: Sequence[int], few: Tensor, many: Tensor) -> int | None:
    """Return the least of the sorted `edges` that a row crosses, from `few` tokens (B,), 1 at least, to `many`.

    Of a row that crosses none, and of one without tokens, it is None.
    """
    sorted_edges = torch.tensor(edges, device=few.device)
    first = torch.searchsorted(sorted_edges, few)
    crossed = (few > 0) & (first < torch.searchsorted(sorted_edges, many))
    return int(sorted_edges[first[crossed].min()]) if bool(crossed.any()) else None
