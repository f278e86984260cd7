"""Run exported graphs against PyTorch and report how far they are apart, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.state import PAST
from ..core.topology import Graph
from .fidelity import Figures
from .manifest import TOTAL, GraphFacts, StateFacts, is_mask
from .session import Session, empty_state, providers

ALLOWED = 1e-4
"""The largest error of a graph in fp32, relative to a tensor's largest magnitude."""
STEPS = 32
FEW_STEPS = 5
SHAPES = ((1, 5), (2, 19), (3, 83))
"""Rows and tokens of the three shapes; the last grows until every ring wraps, within LONGEST."""
LONGEST = 1024

Arrays = dict[str, NDArray[Any]]
Call = tuple[str, Arrays]
"""A graph's name and its inputs."""
Mask = Callable[[int, int, np.random.Generator], NDArray[np.bool_]]
"""From rows and columns to what is real, (rows, columns)."""


@dataclass(frozen=True)
class Row:
    """Hold one comparison: a case, on one provider, in one precision.

    `errors`: of each output and each tensor of the state, the largest error of all steps relative to the largest
    magnitude; infinite where whole numbers differ or a number is not finite. `agreement`: the share of real tokens
    whose largest logit is the same one; None where there are no logits. `allowed`: the largest error that passes.
    """

    case: str
    provider: str
    precision: str
    allowed: float
    errors: Mapping[str, float]
    agreement: float | None

    @property
    def worst(self) -> str:
        """Name the tensor with the largest error."""
        return max(self.errors, key=lambda name: self.errors[name])

    @property
    def error(self) -> float:
        """Return the largest error of all tensors."""
        return self.errors[self.worst]


@dataclass(frozen=True)
class Report:
    """Say where exported graphs agree with PyTorch, and by how much smaller ones differ from the exact ones."""

    rows: tuple[Row, ...]
    figures: tuple[Figures, ...] = ()

    def __add__(self, other: Report) -> Report:
        return Report(self.rows + other.rows, self.figures + other.figures)

    @property
    def failed(self) -> tuple[Row, ...]:
        """Return the rows whose error is above what is allowed."""
        return tuple(row for row in self.rows if not row.error <= row.allowed)

    def __str__(self) -> str:
        width = max(len(row.case) for row in self.rows)
        rows = (
            f"{row.case:{width}}  {row.precision}  {row.provider}  error {row.error:.1e} ({row.worst}), allowed "
            f"{row.allowed:.0e}" + ("" if row.agreement is None else f", same token {row.agreement:.1%}")
            for row in self.rows
        )
        return "\n".join([*rows, *map(str, self.figures)])


def compare(
    functions: Mapping[str, Graph],
    folder: Path,
    graphs: Mapping[str, GraphFacts],
    state: Mapping[str, StateFacts],
    max_seq_len: int,
    *,
    precision: str = "fp32",
    allowed: float = ALLOWED,
) -> Report:
    """Run every case in PyTorch and on every provider of this machine. The model is fp32, on CPU, in eval mode.

    `precision`: what the graphs are of; what they give in half precision is compared as the numbers that it stands for.
    `allowed`: the largest error that passes.
    """
    exact = {n: rule.torch_dtype(torch.float32) for graph in functions.values() for n, rule in graph.takes.items()}
    rows = []
    for provider in providers():
        sessions = {name: Session(folder, facts, state, provider) for name, facts in graphs.items()}
        for case, batch, calls in _cases(graphs, state, max_seq_len):
            tally = _Tally()
            room = sum(_columns(inputs) for name, inputs in calls if graphs[name].steps)
            in_runtime, masks = empty_state(state, batch, room), dict[str, NDArray[Any]]()
            # Copies: a value made from an array is a view of it, and frees it.
            in_torch = {n: torch.from_numpy(v.numpy().copy()).to(exact[n]) for n, v in in_runtime.items() if n in exact}
            for name, new in calls:
                inputs = new | {
                    n: _lengthened(masks, n, mask) for n, mask in new.items() if _covers_all(graphs[name], n)
                }
                wanted, kept = _in_torch(functions[name], inputs, in_torch)
                in_torch |= kept
                found, values = sessions[name].run(inputs, {n: in_runtime[n] for n in graphs[name].takes})
                in_runtime |= values
                tally.add(wanted, found, new)
                seen = _seen(graphs[name], inputs, kept)
                there = {n: _filled(t.numpy(), state[n], seen) for n, t in kept.items()}
                here = {n: _filled(_as_wide(v.numpy(), there[n]), state[n], seen) for n, v in values.items()}
                tally.add(there, here, {})
            rows.append(Row(case, provider, precision, allowed, tally.errors, tally.agreement))
    return Report(tuple(rows))


def _seen(facts: GraphFacts, inputs: Arrays, kept: Mapping[str, torch.Tensor]) -> NDArray[np.int64] | None:
    """Return how many real tokens each row has had after a call, (rows,); None where nothing counts them."""
    masks = (mask.sum(axis=1) for name, mask in inputs.items() if _covers_all(facts, name))
    counted = kept["seen"].numpy() if "seen" in kept else None
    return next(masks, counted)


def _filled(value: NDArray[Any], facts: StateFacts, seen: NDArray[np.int64] | None) -> NDArray[Any]:
    """Return a tensor of the state with what no token stands in set to 0: nobody reads it before it is written."""
    if facts.grows != "slots":
        return value
    assert seen is not None, "what has slots is counted"
    slot = facts.dims.index(PAST)
    free = np.arange(value.shape[slot]) >= seen[:, None]
    return np.where(free.reshape([n if i in (0, slot) else 1 for i, n in enumerate(value.shape)]), 0, value)


def _columns(inputs: Arrays) -> int:
    """Return how many tokens a call brings."""
    return max(int(array.shape[1]) for array in inputs.values())


def _covers_all(facts: GraphFacts, name: str) -> bool:
    """Say whether an input is a mask of all columns since the first step."""
    return TOTAL in facts.inputs[name].dims


def _lengthened(masks: Arrays, name: str, new: NDArray[Any]) -> NDArray[Any]:
    """Return a mask of all columns, those of earlier calls first, and keep it."""
    masks[name] = np.concatenate([masks[name], new], axis=1) if name in masks else new
    return masks[name]


def _in_torch(graph: Graph, inputs: Arrays, state: dict[str, torch.Tensor]) -> tuple[Arrays, dict[str, torch.Tensor]]:
    with torch.inference_mode():
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        outputs, after = graph.run(given, {name: state[name] for name in graph.takes})
        return {name: outputs[name].numpy() for name in graph.outputs}, {name: after[name] for name in graph.gives}


class _Tally:
    """Gather the largest error of each tensor, and how often the largest logits agree."""

    def __init__(self) -> None:
        self.errors: dict[str, float] = {}
        self._same = self._tokens = 0

    @property
    def agreement(self) -> float | None:
        return self._same / self._tokens if self._tokens else None

    def add(self, wanted: Arrays, found: Arrays, inputs: Arrays) -> None:
        """Compare the tensors of one call; the masks among its inputs say which tokens of the logits are real."""
        for name, want in wanted.items():
            self.errors[name] = max(self.errors.get(name, 0.0), relative_error(found[name], want))
            if name.startswith("logits"):
                masks = (mask.astype(bool) for n, mask in inputs.items() if is_mask(n) and mask.ndim == want.ndim - 1)
                real: NDArray[np.bool_] = next(masks, np.ones(want.shape[:-1], dtype=bool))
                if real.shape != want.shape[:-1]:  # of each row's last token alone
                    real = np.any(real, axis=1, keepdims=True)
                same = want.argmax(-1) == found[name].argmax(-1)
                self._same += int(same[real].sum())
                self._tokens += int(real.sum())


def _as_wide(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    """Return numbers of half precision in the one that they are compared in."""
    return found.astype(wanted.dtype) if found.dtype == np.float16 and wanted.dtype.kind == "f" else found


def relative_error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the largest difference over the largest magnitude wanted; infinite where integers or shapes differ."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if wanted.size == 0 or np.array_equal(found, wanted):
        return 0.0
    apart = float(np.abs(found - wanted).max())
    if wanted.dtype.kind != "f" or not np.isfinite(apart):
        return float("inf")
    return apart / (float(np.abs(wanted).max()) or 1.0)


# -- what is run ------------------------------------------------------------------------------------------------------


def _cases(
    graphs: Mapping[str, GraphFacts], state: Mapping[str, StateFacts], max_seq_len: int
) -> Iterator[tuple[str, int, list[Call]]]:
    """Yield the title, the rows and the calls of each case: at every shape a prefill, decoding and padded rows."""
    stepping = {name for name, facts in graphs.items() if facts.steps}
    masked = any(is_mask(n) for facts in graphs.values() for n in facts.inputs)
    room = max(1, max_seq_len - min(STEPS, max_seq_len // 2))
    ring = max((int(facts.dims[1]) for facts in state.values() if facts.grows == "ring"), default=0)
    for batch, length in (*SHAPES[:-1], (SHAPES[-1][0], min(max(SHAPES[-1][1], ring + 3), LONGEST))):
        length = min(length, room)
        steps = min(STEPS, max_seq_len - length)
        random = np.random.default_rng([batch, length])
        whole: list[Call] = [(name, _inputs(facts, batch, length, random)) for name, facts in graphs.items()]
        yield f"whole {batch}x{length}", batch, whole
        if stepping and steps:
            more = [(name, _inputs(graphs[name], batch, 1, random)) for _ in range(steps) for name in sorted(stepping)]
            yield f"steps {batch}x{length}+{steps}", batch, whole + more
        if stepping and length > 1:
            yield f"chunks {batch}x{length}", batch, _in_chunks(graphs, batch, length, min(FEW_STEPS, steps), random)
        if masked:
            calls = [(name, _inputs(facts, batch, length, random, _padding)) for name, facts in graphs.items()]
            for step in range(min(FEW_STEPS, steps)):
                ended = partial(_ended, step)
                calls += [(name, _inputs(graphs[name], batch, 1, random, ended)) for name in sorted(stepping)]
            yield f"padded {batch}x{length}", batch, calls


def _in_chunks(
    graphs: Mapping[str, GraphFacts], batch: int, length: int, steps: int, random: np.random.Generator
) -> list[Call]:
    """Return the calls of a prefill in two chunks, the first one padded where there are masks, and of some steps."""
    calls = []
    first = length // 2 + length % 3
    for name, facts in graphs.items():
        if not facts.steps:
            calls.append((name, _inputs(facts, batch, length, random)))
            continue
        calls.append((name, _inputs(facts, batch, first, random, _padding)))
        calls += [(name, _inputs(facts, batch, size, random)) for size in (length - first, *(1 for _ in range(steps)))]
    return calls


def _inputs(
    facts: GraphFacts, batch: int, length: int, random: np.random.Generator, mask: Mask | None = None
) -> Arrays:
    """Draw the inputs of one call; a memory is a little longer than the rest, so that the two can't be mixed up."""
    sizes = {"batch": batch, "memory": length + 2}
    inputs: Arrays = {}
    for name, tensor in facts.inputs.items():
        shape = [sizes.get(d, length) if isinstance(d, str) else d for d in tensor.dims]
        if is_mask(name):
            real = np.ones(shape, dtype=bool) if mask is None else mask(shape[0], shape[1], random)
            inputs[name] = real.astype(tensor.dtype)
        elif tensor.dtype == "int64":
            inputs[name] = random.integers(tensor.high, size=shape, dtype=np.int64)
        else:
            inputs[name] = random.standard_normal(shape, dtype=np.float32)
    return inputs


def _padding(batch: int, length: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask of rows of unequal length, padded inside, on the left and on the right in turn."""
    mask = np.zeros((batch, length), dtype=bool)
    for row in range(batch):
        real = max(1, length - 1 - row * length // 4)
        inside = np.sort(random.permutation(length)[:real])
        mask[row, (inside, slice(length - real, None), slice(real))[row % 3]] = True
    return mask


def _ended(step: int, batch: int, length: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return the mask of a step in which some rows have ended, others not."""
    return np.repeat((np.arange(batch) + step) % 3 != 1, length).reshape(batch, length)
