"""One exported graph in ONNX Runtime: named arrays and a state in, named arrays and the next state out."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ..errors import ExportError, InputError
from .manifest import MANIFEST, TOTAL, Dims, GraphFacts, Manifest, StateFacts, TensorFacts
from .pages import large_pages

Arrays = Mapping[str, NDArray[Any]]
Values = dict[str, ort.OrtValue]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ORT_NAMES = {"float32": "float", "float64": "double"}
# Without this a GPU multiplies fp32 in 19 bits.
_OPTIONS = {CUDA: {"use_tf32": "0"}}


def providers() -> list[str]:
    """Return the execution providers that can run here, the fastest first."""
    return [CUDA, CPU] if CUDA in ort.get_available_providers() and _has_gpu() else [CPU]


def chosen(wanted: str | None) -> str:
    """Return the provider that is wanted, or the fastest one where none is.

    Raises:
        ExportError: it does not run here.
    """
    there = providers()
    if wanted is None:
        return there[0]
    if wanted not in there:
        near = get_close_matches(wanted, there, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ExportError(f"{wanted}: this machine runs {' and '.join(there)}{hint}")
    return wanted


def _has_gpu() -> bool:
    """Ask the driver: ONNX Runtime names a provider that it was built with, whether or not there is a device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


class Session:
    """Run one graph of an exported folder; `provider` is one of `providers()`.

    `threads`: for each operator; 0 leaves it to ONNX Runtime.
    """

    def __init__(
        self, folder: Path, facts: GraphFacts, state: Mapping[str, StateFacts], provider: str, threads: int = 0
    ) -> None:
        self.facts = facts
        self._feeds = {name: state[name].input for name in facts.takes}
        self._fetches = {**{n: n for n in facts.outputs}, **{name: state[name].output for name in facts.gives}}
        self._slots = [name for name in facts.gives if state[name].grows == "slots"]
        if provider == CUDA:
            ort.preload_dlls()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        path = folder / facts.file
        try:
            with large_pages() if provider == CPU else nullcontext():
                chosen = [(provider, _OPTIONS.get(provider, {}))]
                self._session = ort.InferenceSession(path, options, providers=chosen, enable_fallback=0)
        except Exception as error:  # the library has an exception class per status code, with no common parent
            raise ExportError(f"{path}: ONNX Runtime {ort.__version__} can't load it: {error}") from None
        self._last: tuple[Any, Values] = self._session.io_binding(), {}
        if provider not in self._session.get_providers():
            raise ExportError(f"{path}: {provider} does not start on this machine; there is {', '.join(providers())}")
        if wrong := self._unlike(state):
            raise ExportError(f"{path}: {wrong}, which is not what {MANIFEST} says: export again")

    def _unlike(self, state: Mapping[str, StateFacts]) -> str:
        """Return the first input or output that is not as described, "" if none is."""
        takes = {state[name].input: state[name] for name in self.facts.takes}
        gives = {state[name].output: state[name] for name in self.facts.gives}
        sides: tuple[tuple[str, Any, dict[str, TensorFacts | StateFacts]], ...] = (
            ("input", self._session.get_inputs(), {**self.facts.inputs, **takes}),
            ("output", self._session.get_outputs(), {**self.facts.outputs, **gives}),
        )
        for side, there, said in sides:
            found = {one.name: one for one in there}
            if missing := said.keys() - found.keys():
                return f"has no {side} {ascii(min(missing))[:60]}"
            if more := found.keys() - said.keys() if side == "input" else set():
                return f"takes {ascii(min(more))[:60]}"
            for name, facts in said.items():
                kind = f"tensor({ORT_NAMES.get(facts.dtype, facts.dtype)})"
                if found[name].type != kind or not _alike(facts.dims, found[name].shape):
                    return f"has {side} {ascii(name)[:60]} of {found[name].type} {found[name].shape}"
        return ""

    def run(self, inputs: Arrays, state: Values) -> tuple[dict[str, NDArray[Any]], Values]:
        """Return the graph's outputs and the state that it gives, for all its inputs and the state that it takes.

        Raises:
            InputError: an input is missing, unknown, or not of its declared shape, dtype or range.
        """
        self._check(inputs)
        rows = len(next(iter(inputs.values())))
        if self.facts.rows_alone and rows > 1 and self._goes_on(inputs, state):
            return self._row_by_row(rows, inputs, state)
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        feeds |= {feed: state[name] for name, feed in self._feeds.items() if name not in self._slots}
        outputs, after = self._bound(feeds, {name: state[name] for name in self._slots})
        return {name: value.numpy() for name, value in outputs.items()}, after

    def _goes_on(self, inputs: Arrays, state: Values) -> bool:
        """Say whether there are several tokens, and any row has had some before."""
        new = max(array.shape[1] for name, array in inputs.items() if "sequence" in self.facts.inputs[name].dims)
        masks = [array for name, array in inputs.items() if TOTAL in self.facts.inputs[name].dims]
        before = [mask[:, : mask.shape[1] - new] for mask in masks] or [state["seen"].numpy()]
        return new > 1 and any(bool(array.any()) for array in before)

    def _row_by_row(self, rows: int, inputs: Arrays, state: Values) -> tuple[dict[str, NDArray[Any]], Values]:
        taken = {name: value.numpy() for name, value in state.items()}
        found = [
            self.run(
                {name: array[row : row + 1] for name, array in inputs.items()},
                {name: ort.OrtValue.ortvalue_from_numpy(array[row : row + 1].copy()) for name, array in taken.items()},
            )
            for row in range(rows)
        ]
        outputs = {name: np.concatenate([out[name] for out, _ in found]) for name in self.facts.outputs}
        after = {name: np.concatenate([values[name].numpy() for _, values in found]) for name in self.facts.gives}
        return outputs, {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in after.items()}

    def _bound(self, feeds: Values, kept: Values) -> tuple[Values, Values]:
        """Run the graph; what has slots is written where it stands, and not copied."""
        binding, bound = self._last
        if bound.keys() != kept.keys() or any(bound[name] is not value for name, value in kept.items()):
            binding = self._session.io_binding()
            for name, value in kept.items():
                binding.bind_ortvalue_input(self._feeds[name], value)
                binding.bind_ortvalue_output(self._fetches[name], value)
            self._last = binding, kept  # a step after this one has little left to bind
        others = [name for name in self._fetches if name not in kept]
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        for name in others:
            binding.bind_output(self._fetches[name], "cpu")
        self._session.run_with_iobinding(binding)
        made = binding.get_outputs_as_ortvaluevector()
        # Kept ones themselves: memory that came from numpy lives as long as the value that was made of it.
        found = {**kept, **{name: ort.OrtValue(made[len(kept) + place]) for place, name in enumerate(others)}}
        return {n: found[n] for n in self.facts.outputs}, {n: found[n] for n in self.facts.gives}

    def _check(self, inputs: Arrays) -> None:
        if inputs.keys() != self.facts.inputs.keys():
            raise InputError(f"this graph takes {', '.join(self.facts.inputs)}; it was given {', '.join(inputs)}")
        for name, facts in self.facts.inputs.items():
            array, dims = inputs[name], facts.dims
            fits = array.ndim == len(dims) and all(
                isinstance(dim, str) or dim == size for dim, size in zip(dims, array.shape, strict=True)
            )
            if not fits or array.dtype != facts.dtype:
                shape = f"({', '.join(map(str, dims))})"
                raise InputError(f"{name}: {array.dtype} of shape {array.shape}; it must be {facts.dtype} of {shape}")
            if facts.high and array.size and not 0 <= array.min() <= array.max() < facts.high:
                raise InputError(f"{name}: {array.min()} to {array.max()}; values go from 0 to {facts.high - 1}")


def _alike(said: Dims, found: Sequence[Any]) -> bool:
    """Say whether dimensions are as many, and those that are numbers on both sides the same."""
    pairs = list(zip(said, found, strict=False))
    return len(said) == len(found) and all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def sessions(folder: Path, manifest: Manifest, provider: str, threads: int = 0) -> dict[str, Session]:
    """Load all graphs of an exported folder, by name.

    Raises:
        ExportError: this ONNX Runtime is too old, or can't load a graph.
    """
    least = manifest.least_onnxruntime
    if _numbers(ort.__version__) < _numbers(least):
        raise ExportError(
            f"{folder}: takes ONNX Runtime {least} or later, and this is {ort.__version__}: install a later one, or "
            f"export with another opset than {manifest.opset}"
        )
    graphs, state = manifest.graphs, manifest.state
    return {name: Session(folder, facts, state, provider, threads) for name, facts in graphs.items()}


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def widened(state: Mapping[str, StateFacts], values: Values, room: int, used: int) -> Values:
    """Return a state with slots for `room` tokens, more than it had; its first `used` slots are in use."""

    def wide(facts: StateFacts, value: ort.OrtValue) -> ort.OrtValue:
        old, place = value.numpy(), facts.dims.index("past")
        new = _filled([room if dim == place else size for dim, size in enumerate(old.shape)], facts)
        held = (*[slice(None)] * place, slice(used))
        new[held] = old[held]
        return ort.OrtValue.ortvalue_from_numpy(new)

    return {n: wide(state[n], value) if state[n].grows == "slots" else value for n, value in values.items()}


def empty_state(state: Mapping[str, StateFacts], batch: int, room: int) -> Values:
    """Return the state before the first token, for `batch` rows: slots for `room` tokens, all other lengths 0."""

    def empty(facts: StateFacts) -> ort.OrtValue:
        sizes = {"batch": batch, "past": room if facts.grows == "slots" else 0}
        shape = [dim if isinstance(dim, int) else sizes.get(dim, 0) for dim in facts.dims]
        return ort.OrtValue.ortvalue_from_numpy(_filled(shape, facts))

    return {name: empty(facts) for name, facts in state.items()}


def _filled(shape: Sequence[int], facts: StateFacts) -> NDArray[Any]:
    """Return an array of what empty entries hold; zeros are memory that costs nothing until it is written."""
    return np.full(shape, facts.fill, facts.dtype) if facts.fill else np.zeros(shape, facts.dtype)
