"""What PyTorch gave for each case of a report, at some places of each tensor, kept in the folder itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import ExportError
from .cases import Arrays, Call, Case, numbers
from .manifest import GraphFacts

REFERENCE = "reference.safetensors"
POINTS = 64
"""Places of each tensor that are kept, evenly spread; all of a smaller one."""
TOP = 8
"""Logits of each token that are kept, the largest ones: between them a choice may be a near tie."""
LARGEST = 1 << 28
"""Numbers that an input may have at most."""
CASES, FLOATS, INTS = "cases", "floats", "ints"


def places(size: int) -> NDArray[np.int64]:
    """Return which places are kept of a flat tensor: by the golden ratio, so that they follow no dimension."""
    if size <= POINTS:
        return np.arange(size)
    return np.unique((np.arange(POINTS) * 0.6180339887498949 % 1 * size).astype(np.int64))


class Recorder:
    """Take down what PyTorch gives, case after case, and write it to a folder."""

    def __init__(self) -> None:
        self._cases: list[dict[str, Any]] = []
        self._kept: dict[str, NDArray[Any]] = {}

    def case(self, case: Case) -> Notes:
        """Begin a case: what is noted has the order of what is run."""
        notes = Notes()
        calls = []
        for call in case.calls:
            said = {name: [list(array.shape), call.seeds.get(name)] for name, array in call.inputs.items()}
            calls.append({"graph": call.graph, "inputs": said})
            notes.ints += [array for name, array in call.inputs.items() if name not in call.seeds]
        self._cases.append({"title": case.title, "rows": case.rows, "calls": calls, "notes": notes})
        return notes

    def write(self, folder: Path) -> None:
        """Write `reference.safetensors`."""
        kept: Arrays = {}
        for number, case in enumerate(self._cases):
            notes = case["notes"]
            kept[f"{number}.{FLOATS}"] = np.concatenate([np.ravel(each).astype(np.float32) for each in notes.floats])
            kept[f"{number}.{INTS}"] = np.concatenate([np.ravel(each).astype(np.int32) for each in notes.ints])
        said = [{name: value for name, value in case.items() if name != "notes"} for case in self._cases]
        (folder / REFERENCE).write_bytes(save(kept, {CASES: json.dumps(said)}))


class Notes:
    """Hold what is kept of one case."""

    def __init__(self) -> None:
        self.floats: list[Any] = []
        self.ints: list[Any] = [np.zeros(0)]

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Keep a tensor's largest magnitude, some of its places, and of logits the largest ones of each token."""
        self.floats += [np.abs(array).max(initial=0), array.ravel()[places(array.size)]]
        if name.startswith("logits"):
            top = _largest(array)
            self.ints.append(top)
            self.floats.append(array.max(-1, keepdims=True).astype(np.float64) - np.take_along_axis(array, top, -1))


def _largest(logits: NDArray[Any]) -> NDArray[np.int64]:
    """Return the places of each token's TOP largest logits, the largest first, and of equal ones the first place."""
    count = min(TOP, logits.shape[-1])
    top = np.sort(np.argpartition(logits, -count, axis=-1)[..., -count:], axis=-1)
    order = np.argsort(-np.take_along_axis(logits, top, -1), axis=-1, kind="stable")
    top = np.take_along_axis(top, order, -1)
    top[..., 0] = logits.argmax(-1)  # there may be more of one size than are kept
    return top


class Kept:
    """Be what was kept of a tensor."""

    def __init__(self, largest: float, points: NDArray[Any], top: NDArray[Any], margins: NDArray[Any]) -> None:
        """Take margins of logits: how far the largest ones of each token, `top` (..., TOP), are below its largest."""
        self.largest: float | None = largest
        self._points, self._top, self._margins = points, top, margins

    def points(self, found: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return what was found, and what should be, at the places that were kept."""
        return found.ravel()[places(found.size)], self._points.astype(found.dtype)

    @property
    def best(self) -> NDArray[np.int64]:
        """Return the largest logit's place of each token."""
        return self._top[..., 0].astype(np.int64)

    def margin(self, instead: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how much larger each token's largest logit is than another; infinite where the other was not kept."""
        at = self._top == instead[..., None]
        margin: NDArray[np.float64] = np.where(at, self._margins.astype(np.float64), np.inf).min(axis=-1)
        return margin


class Reader:
    """Read what was kept of one case, in the order in which it was noted."""

    def __init__(self, path: Path, floats: NDArray[np.float32], ints: NDArray[np.int32]) -> None:
        self._path, self._floats, self._ints = path, floats, ints

    def next(self, name: str, found: NDArray[Any]) -> Kept:
        """Return what was kept of the next tensor, which is of the shape of what was found."""
        largest, points = float(self.floats(1)[0]), self.floats(len(places(found.size)))
        shape = (*found.shape[:-1], min(TOP, found.shape[-1])) if name.startswith("logits") else (0,)
        size = int(np.prod(shape))
        return Kept(largest, points, self.ints(size).reshape(shape), self.floats(size).reshape(shape))

    def floats(self, count: int) -> NDArray[np.float32]:
        """Return the next numbers."""
        found, self._floats = self._floats[:count], self._floats[count:]
        return self._all(found, count)

    def ints(self, count: int) -> NDArray[np.int32]:
        """Return the next whole numbers."""
        found, self._ints = self._ints[:count], self._ints[count:]
        return self._all(found, count)

    def end(self) -> None:
        """Check that all was read."""
        if len(self._floats) or len(self._ints):
            raise misfit(self._path, "it holds more than the graphs give")

    def _all(self, found: NDArray[Any], count: int) -> NDArray[Any]:
        if len(found) < count:
            raise misfit(self._path, "it ends too early")
        return found


def misfit(path: Path, why: object) -> ExportError:
    """Return the error of a file that tells of another folder, or is broken."""
    return ExportError(f"{path}: does not fit this folder ({why}): export again")


def read(folder: Path, graphs: Mapping[str, GraphFacts]) -> Iterator[tuple[Case, Reader]]:
    """Yield the cases that a folder keeps, each with what was kept of it; its calls are of `graphs`.

    Raises:
        ExportError: there is no such file, or it is broken.
    """
    path = folder / REFERENCE
    if not path.is_file():
        raise ExportError(f"{path}: is missing, so there is nothing to check against: export again")
    try:
        with safe_open(path, framework="numpy") as file:
            said = json.loads(file.metadata()[CASES])
            for number, case in enumerate(said):
                reader = Reader(path, file.get_tensor(f"{number}.{FLOATS}"), file.get_tensor(f"{number}.{INTS}"))
                calls = tuple(_call(call, graphs, reader) for call in case["calls"])
                if {len(array) for call in calls for array in call.inputs.values()} != {case["rows"]}:
                    raise ValueError("its cases are not of as many rows as they say")
                yield Case(str(case["title"]), case["rows"], calls), reader
                reader.end()
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise misfit(path, error) from None


def _call(said: Mapping[str, Any], graphs: Mapping[str, GraphFacts], reader: Reader) -> Call:
    """Return a call with its inputs, which are those of its graph."""
    facts = graphs[said["graph"]].inputs
    if said["inputs"].keys() != facts.keys():
        raise ValueError(f"graph {said['graph']} takes {', '.join(facts)}")
    inputs: Arrays = {}
    for name, (shape, seed) in said["inputs"].items():
        if len(shape) != len(facts[name].dims) or not 0 < math.prod(shape) <= LARGEST or min(shape) < 1:
            raise ValueError(f"{name} is not of a size that it can be of")
        drawn = reader.ints(math.prod(shape)).astype(np.int64).reshape(shape) if seed is None else None
        inputs[name] = numbers(seed, shape) if drawn is None else drawn
    return Call(said["graph"], inputs)
