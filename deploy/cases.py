"""What graphs are compared on: prefill, chunks, decoding, padded and ragged rows, each at three shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import GraphFacts, StateFacts, is_mask

STEPS = 32
FEW_STEPS = 5
SHAPES = ((1, 5), (2, 19), (3, 83))
"""Rows and tokens of the three shapes; the last grows until every ring wraps, within LONGEST."""
LONGEST = 1024

Arrays = dict[str, NDArray[Any]]
Mask = Callable[[int, int, np.random.Generator], NDArray[np.bool_]]
"""From rows and columns to what is real, (rows, columns)."""


@dataclass(frozen=True)
class Call:
    """Hold one run of a graph: its inputs, masks of the new columns alone; `seeds`: by which numbers were drawn."""

    graph: str
    inputs: Arrays
    seeds: Mapping[str, int] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        """Return how many tokens it brings."""
        return max(int(array.shape[1]) for array in self.inputs.values())


@dataclass(frozen=True)
class Case:
    """Hold some calls one after the other, for as many rows, from an empty state."""

    title: str
    rows: int
    calls: tuple[Call, ...]

    def ending(self) -> Iterator[tuple[Call, bool]]:
        """Yield the calls, each with whether it is the last one of its graph."""
        last = {call.graph: number for number, call in enumerate(self.calls)}
        for number, call in enumerate(self.calls):
            yield call, last[call.graph] == number

    def room(self, graphs: Mapping[str, GraphFacts]) -> int:
        """Return how many tokens its steps bring together."""
        return sum(call.columns for call in self.calls if graphs[call.graph].steps)


def cases(graphs: Mapping[str, GraphFacts], state: Mapping[str, StateFacts], max_seq_len: int) -> Iterator[Case]:
    """Yield the cases of every shape, each drawn anew."""
    stepping = sorted(name for name, facts in graphs.items() if facts.steps)
    masked = any(is_mask(n) for facts in graphs.values() for n in facts.inputs)
    room = max(1, max_seq_len - min(STEPS, max_seq_len // 2))
    ring = max((int(facts.dims[1]) for facts in state.values() if facts.grows == "ring"), default=0)
    for rows, most in (*SHAPES[:-1], (SHAPES[-1][0], min(max(SHAPES[-1][1], ring + 3), LONGEST))):
        length = min(most, room)
        steps = min(STEPS, max_seq_len - length)
        draw = partial(draw_call, graphs, rows, random=np.random.default_rng([rows, length]))
        whole = [draw(name, length) for name in graphs]
        yield Case(f"whole {rows}x{length}", rows, tuple(whole))
        if stepping and steps:
            more = [draw(name, 1) for _ in range(steps) for name in stepping]
            yield Case(f"steps {rows}x{length}+{steps}", rows, (*whole, *more))
        if stepping and length > 1:
            yield Case(f"chunks {rows}x{length}", rows, tuple(_in_chunks(graphs, length, min(FEW_STEPS, steps), draw)))
        for title, mask in (("padded", _padding), ("ragged", _ragged)) if masked else ():
            if mask is _ragged and rows == 1:  # rows of unequal length take two
                continue
            calls = [draw(name, length, mask=mask) for name in graphs]
            for step in range(min(FEW_STEPS, steps)):
                calls += [draw(name, 1, mask=partial(_ended, step)) for name in stepping]
            yield Case(f"{title} {rows}x{length}", rows, tuple(calls))


def _in_chunks(graphs: Mapping[str, GraphFacts], length: int, steps: int, draw: Callable[..., Call]) -> Iterator[Call]:
    """Yield the calls of a prefill in two chunks, the first one padded where there are masks, and of some steps."""
    first = length // 2 + length % 3
    for name, facts in graphs.items():
        if not facts.steps:
            yield draw(name, length)
            continue
        yield draw(name, first, mask=_padding)
        yield from (draw(name, size) for size in (length - first, *(1 for _ in range(steps))))


def draw_call(
    graphs: Mapping[str, GraphFacts],
    rows: int,
    graph: str,
    length: int,
    *,
    random: np.random.Generator,
    mask: Mask | None = None,
) -> Call:
    """Draw the inputs of one call; a memory is a little longer than the rest, so that the two can't be mixed up."""
    sizes = {"batch": rows, "memory": length + 2}
    inputs: Arrays = {}
    seeds: dict[str, int] = {}
    for name, tensor in graphs[graph].inputs.items():
        shape = [sizes.get(d, length) if isinstance(d, str) else d for d in tensor.dims]
        if is_mask(name):
            real = np.ones(shape, dtype=bool) if mask is None else mask(shape[0], shape[1], random)
            inputs[name] = real.astype(tensor.dtype)
        elif tensor.dtype == "int64":
            inputs[name] = random.integers(tensor.high, size=shape, dtype=np.int64)
        else:
            seeds[name] = int(random.integers(2**31))
            inputs[name] = numbers(seeds[name], shape)
    return Call(graph, inputs, seeds)


def numbers(seed: int, shape: list[int]) -> NDArray[np.float32]:
    """Draw numbers of variance 1, which are the same on every machine and with every version of numpy.

    Those of SplitMix64 (Steele et al. 2014), evenly spread.
    """
    count = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    mixed = np.uint64(seed) + count * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    even = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    drawn: NDArray[np.float32] = ((even - np.float32(0.5)) * np.float32(12**0.5)).reshape(shape)
    return drawn


def _padding(rows: int, length: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask of rows of unequal length, padded inside, on the left and on the right in turn."""
    mask = np.zeros((rows, length), dtype=bool)
    for row in range(rows):
        real = max(1, length - 1 - row * length // 4)
        inside = np.sort(random.permutation(length)[:real])
        mask[row, (inside, slice(length - real, None), slice(real))[row % 3]] = True
    return mask


def _ragged(rows: int, length: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask of rows of unequal length, padded on the right; the last one is whole."""
    real = random.integers(1, length + 1, size=rows)
    real[-1] = length
    found: NDArray[np.bool_] = np.arange(length) < real[:, None]
    return found


def _ended(step: int, rows: int, length: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return the mask of a step in which some rows have ended, others not."""
    return np.repeat((np.arange(rows) + step) % 3 != 1, length).reshape(rows, length)
