"""Measure how fast an exported folder runs on this machine, and how fast the machine could read its weights."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]

from ..errors import InputError
from ..generation import Stepper
from .arrays import ArrayRuntime
from .cases import Arrays, draw_call
from .manifest import GraphFacts
from .reaching import locations
from .session import CPU

LENGTHS = (32, 512)
COPIED = 1 << 27  # bytes that each thread copies: more than caches hold
COPIES = 5
HEADINGS = ("tokens", "prefill", "tokens/s", "first token", "one more", "tokens/s", "state MB")


@dataclass(frozen=True)
class Spread:
    """Hold the median of some times, and the quarters below and above it; seconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Spread:
        """Return the spread of times."""
        low, median, high = np.percentile(times, (25, 50, 75)).tolist()
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median * 1e3:.2f} ({self.low * 1e3:.2f} to {self.high * 1e3:.2f})"


@dataclass(frozen=True)
class Speed:
    """Hold what was measured at one length.

    `length`: tokens; 0 where inputs are of one size. `prefill`: until the logits after the prompt are there; of a model
    that reads a source, or reads only, until it is read. `first`: from nothing to the first token chosen. `decode`: one
    more step, all rows. `state`: the bytes of what is remembered then. What a model does not do is None.
    """

    length: int
    prefill: Spread
    first: Spread | None = None
    decode: Spread | None = None
    state: int | None = None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Hold what was measured of a folder.

    `threads`: that ONNX Runtime was told to use. `weights`: bytes of the graph that takes steps, or of all where none
    does. `bandwidth`: bytes a second that the same number of threads copy from memory to memory, read and written; None
    where the weights lie elsewhere. `peak`: the largest memory of this process, bytes; None where the system does not
    say.
    """

    provider: str
    onnxruntime: str
    precision: str
    threads: int
    batch: int
    rounds: int
    tokens: int
    speeds: tuple[Speed, ...]
    weights: int
    bandwidth: float | None
    peak: int | None

    @property
    def floor(self) -> float | None:
        """Return the seconds that reading the weights once takes at the measured bandwidth."""
        return self.weights / self.bandwidth if self.bandwidth else None

    def __str__(self) -> str:
        lines = [
            f"{self.provider}, {self.threads} threads, ONNX Runtime {self.onnxruntime}; {self.precision}, batch "
            f"{self.batch}; ms, medians of {self.rounds} rounds (and quarters)",
            *_table([HEADINGS, *(self._cells(speed) for speed in self.speeds)]),
            f"weights {self.weights / 1e6:.2f} MB",
        ]
        if self.floor and self.bandwidth:
            lines[-1] += (
                f": {self.floor * 1e3:.3g} ms to read once, at the {self.bandwidth / 1e9:.1f} GB/s of a copy here"
            )
        return "\n".join([*lines, *([f"peak of memory {self.peak / 1e6:.0f} MB"] if self.peak else [])])

    def _cells(self, speed: Speed) -> tuple[str, ...]:
        """Return what a line says of one length, by HEADINGS."""
        read = self.batch * speed.length / speed.prefill.median if speed.length else 0
        written = self.batch / speed.decode.median if speed.decode else 0
        return (
            str(speed.length or "all"),
            str(speed.prefill),
            f"{read:.0f}" if read else "",
            str(speed.first or ""),
            str(speed.decode or ""),
            f"{written:.1f}" if written else "",
            "" if speed.state is None else f"{speed.state / 1e6:.2f}",
        )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines of aligned columns, without those that are empty but for their heading."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]


def bench(
    folder: str | os.PathLike[str],
    *,
    lengths: Sequence[int] = (),
    batch: int = 1,
    tokens: int = 16,
    rounds: int = 7,
    threads: int | None = None,
    provider: str | None = None,
) -> Bench:
    """Measure an exported folder on drawn inputs, lengths in turns, after a round that does not count.

    Args:
        folder: what `export` wrote.
        lengths: of prompts, or of sources; 32 and 512 unless given, as far as the model goes.
        batch: rows.
        tokens: steps that are measured behind each prompt.
        rounds: how often each length is measured.
        threads: for each operator; as many as there are cores unless given.
        provider: ONNX Runtime's; the fastest one that runs here unless given.

    Raises:
        ExportError: the folder is not whole, or the provider does not run here.
        InputError: a number is out of range, or a length more than the model holds.
    """
    for name, value in (("batch", batch), ("tokens", tokens), ("rounds", rounds), ("threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{name}: {value} leaves nothing to measure; at least 1")
    used = threads or cores()
    runtime = ArrayRuntime(folder, provider, used)
    course = _Course(runtime, batch, tokens)
    times: dict[int, list[_Times]] = {length: [] for length in course.lengths(lengths)}
    for number in range(rounds + 1):
        for length, held in times.items():
            measured = course.run(length)
            held += [measured] if number else []
    peak = _peak()  # before the copies
    stepping = [facts for facts in runtime.manifest.graphs.values() if facts.steps]
    return Bench(
        provider=runtime.provider,
        onnxruntime=ort.__version__,
        precision=runtime.manifest.precision,
        threads=used,
        batch=batch,
        rounds=rounds,
        tokens=tokens,
        speeds=tuple(_speed(length, held) for length, held in times.items()),
        weights=_weights(runtime.folder, stepping or list(runtime.manifest.graphs.values())),
        bandwidth=bandwidth(used) if runtime.provider == CPU else None,
        peak=peak,
    )


@dataclass(frozen=True)
class _Times:
    """Hold the times of one round, in seconds."""

    prefill: float
    first: float | None = None
    steps: tuple[float, ...] = ()
    state: int | None = None


class _Course:
    """Do with a folder what its model does: read and write, read a source and write, or read alone."""

    def __init__(self, runtime: ArrayRuntime, batch: int, tokens: int) -> None:
        self._runtime, self._batch, self._tokens = runtime, batch, tokens
        self._random = np.random.default_rng(0)
        graphs = runtime.manifest.graphs
        self._reads = next((name for name, facts in graphs.items() if not facts.steps), next(iter(graphs)))
        self._run = self._whole if not runtime.writes else self._answer if runtime.reads_source else self._write
        behind = self._tokens + 1 if self._run == self._write else 0
        self._most = runtime.max_seq_len - behind
        dims = {dim for facts in graphs[self._reads].inputs.values() for dim in facts.dims}
        self._sized = any(isinstance(dim, str) and dim != "batch" for dim in dims)

    def lengths(self, wanted: Sequence[int]) -> list[int]:
        """Return the lengths to measure, each once."""
        if not self._sized:
            return [0]
        if self._most < 1 or (self._run == self._answer and self._tokens + 2 > self._runtime.max_seq_len):
            raise InputError(
                f"tokens: {self._tokens}; this model takes at most max_seq_len = {self._runtime.max_seq_len}"
            )
        for length in wanted:
            if not 1 <= length <= self._most:
                room = f" and {self._tokens + 1} more" if self._most < self._runtime.max_seq_len else ""
                raise InputError(
                    f"lengths: {length}{room}; this model takes 1 to max_seq_len = {self._runtime.max_seq_len}"
                )
        return list(dict.fromkeys(wanted or (min(length, self._most) for length in LENGTHS)))

    def run(self, length: int) -> _Times:
        """Return the times of one round at a length."""
        return self._run(length)

    def _whole(self, length: int) -> _Times:
        inputs, output = self._inputs(length), next(iter(self._runtime.manifest.graphs[self._reads].outputs))
        begun = time.perf_counter()
        self._runtime.whole(output, inputs)
        return _Times(time.perf_counter() - begun)

    def _answer(self, length: int) -> _Times:
        inputs = self._inputs(length)
        begun = time.perf_counter()
        writer = self._runtime.read(inputs)
        read = time.perf_counter() - begun
        state = writer.start(self._batch)
        logits, state = writer.step(np.zeros((self._batch, 1), dtype=np.int64), None, state)
        return self._steps(writer, logits, state, read, begun)

    def _write(self, length: int) -> _Times:
        ids = self._random.integers(self._runtime.vocab_size, size=(self._batch, length))
        begun = time.perf_counter()
        state = self._runtime.start(self._batch)
        started = time.perf_counter()
        logits, state = self._runtime.step(ids, None, state)
        return self._steps(self._runtime, logits, state, time.perf_counter() - started, begun)

    def _steps(self, stepper: Stepper, logits: Any, state: Any, read: float, begun: float) -> _Times:
        """Write tokens, the likeliest each; the first step is not measured, because the state may get longer there."""
        times = []
        chosen = logits.argmax(-1)[:, None]
        first = time.perf_counter() - begun
        for number in range(self._tokens + 1):
            begun = time.perf_counter()
            logits, state = stepper.step(chosen, None, state)
            chosen = logits.argmax(-1)[:, None]
            times += [time.perf_counter() - begun] if number else []
        size = sum(value.numpy().nbytes for value in state.values.values())
        return _Times(read, first, tuple(times), size)

    def _inputs(self, length: int) -> Arrays:
        return draw_call(self._runtime.manifest.graphs, self._batch, self._reads, length, random=self._random).inputs


def _speed(length: int, rounds: Sequence[_Times]) -> Speed:
    firsts = [each.first for each in rounds if each.first is not None]
    steps = [step for each in rounds for step in each.steps]
    return Speed(
        length,
        Spread.of([each.prefill for each in rounds]),
        Spread.of(firsts) if firsts else None,
        Spread.of(steps) if steps else None,
        rounds[-1].state,
    )


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bandwidth(threads: int) -> float:
    """Return the bytes a second that so many threads copy, those read and those written: the most of some tries."""
    pairs = [(np.ones(COPIED, dtype=np.uint8), np.zeros(COPIED, dtype=np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        times = []
        for _ in range(COPIES):
            begun = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            times.append(time.perf_counter() - begun)
    return 2 * COPIED * threads / min(times)


def _weights(folder: Path, graphs: Sequence[GraphFacts]) -> int:
    """Return the bytes of graphs and of what lies beside them, each file once."""
    files = {folder / name for facts in graphs for name in (facts.file, *locations(folder / facts.file))}
    return sum(file.stat().st_size for file in files)


def _peak() -> int | None:
    """Return the largest memory that this process has had, bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
