"""Read whole rows with the graphs of a folder, whether they take them at once or token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import TOTAL, GraphFacts, StateFacts, is_mask
from .session import Session, empty_state

DRAWN = (8, 48)
"""Rows and tokens that are drawn where there is no data."""
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Exported:
    """Hold the graphs of a folder, and their state."""

    folder: Path
    graphs: Mapping[str, GraphFacts]
    state: Mapping[str, StateFacts]

    @property
    def size(self) -> int:
        """Return the bytes of the graphs with their weights."""
        files = [self.folder / facts.file for facts in self.graphs.values()]
        there = [file for path in files for file in (path, path.with_name(f"{path.name}.data")) if file.exists()]
        return sum(file.stat().st_size for file in there)


def read(exported: Exported, provider: str, inputs: Arrays) -> Arrays:
    """Return what all graphs give for whole rows; one that gives the last token's logits alone reads token by token."""
    rows = len(next(iter(inputs.values())))
    room = max(columns(facts, inputs) for facts in exported.graphs.values())
    state = empty_state(exported.state, rows, room)
    given: Arrays = {}
    for facts in exported.graphs.values():
        session = Session(exported.folder, facts, exported.state, provider)
        last = any(tensor.dims[1:2] == (1,) for name, tensor in facts.outputs.items() if name.startswith("logits"))
        length = columns(facts, inputs)
        size = 1 if facts.steps and last else length
        pieces = []
        for start in range(0, length, size):
            outputs, after = session.run(
                cut(facts, inputs, slice(start, start + size)), {name: state[name] for name in facts.takes}
            )
            state |= after
            pieces.append(outputs)
        for name in facts.outputs:
            each = [piece[name] for piece in pieces]
            given[name] = np.concatenate(each, axis=1) if len(each) > 1 else each[0]
    return given


def columns(facts: GraphFacts, inputs: Arrays) -> int:
    """Return how many tokens a graph reads."""
    own = [n for n, tensor in facts.inputs.items() if "sequence" in tensor.dims or TOTAL in tensor.dims]
    names = own or list(facts.inputs)
    return max(int(inputs[n].shape[1]) for n in names if n in inputs)


def cut(facts: GraphFacts, inputs: Arrays, part: slice) -> Arrays:
    """Return a graph's inputs for some of the columns; a mask that is left out is all ones, what is optional zeros."""
    found: Arrays = {}
    for name, tensor in facts.inputs.items():
        array = inputs.get(name)
        if array is None:
            array = np.full_like(inputs[_ids(name)], 1 if is_mask(name) else 0)
        if TOTAL in tensor.dims:
            array = array[:, : part.stop]
        elif "sequence" in tensor.dims:
            array = array[:, part]
        found[name] = array.astype(tensor.dtype)
    return found


def _ids(name: str) -> str:
    """Return the name of the ids that a mask, or an input that may be left out, is beside."""
    return name.replace("attention_mask", "input_ids") if is_mask(name) else "input_ids"


def lacking(graphs: Mapping[str, GraphFacts], inputs: Arrays) -> str:
    """Name the input of a graph that is not there; nothing where all are."""
    for facts in graphs.values():
        for name, tensor in facts.inputs.items():
            known = (is_mask(name) or tensor.optional) and _ids(name) in inputs
            if name not in inputs and not known:
                return name
    return ""


def drawn(graphs: Mapping[str, GraphFacts]) -> Arrays:
    """Draw inputs for all graphs."""
    random = np.random.default_rng(0)
    inputs: Arrays = {}
    for facts in graphs.values():
        for name, tensor in facts.inputs.items():
            sizes = {"batch": DRAWN[0]}
            shape = [sizes.get(dim, DRAWN[1]) if isinstance(dim, str) else dim for dim in tensor.dims]
            if is_mask(name):
                array: NDArray[Any] = np.ones(shape, dtype=tensor.dtype)
            elif tensor.dtype == "int64":
                array = random.integers(tensor.high, size=shape, dtype=np.int64)
            else:
                array = random.standard_normal(shape, dtype=np.float32)
            inputs.setdefault(name, array)
    return inputs
