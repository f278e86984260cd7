"""Measure what a step of an exported decoder costs after more and more tokens, and how fast it reads a long prompt.

    python benchmarks/bench_context.py [--work FOLDER] [--rounds 9] [--rows 1] [--only NAME ...]

Models of 4 layers, d_model 768, 12 heads, d_ff 2048, vocabulary 1024, random, fp32, which differ in attention alone.
All take turns within a round, on the threads that OMP_NUM_THREADS says (two unless set). A state after a past is filled
with random numbers instead of being read token by token: what a step costs depends on how much it keeps alone.
The first steps after a pause, or after another model's, are left out: until the second thread is awake again they take
up to twice as long, on any model, and how many do depends on what went before.
The slope is that of log time against log context, by least squares over the medians.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import linear_regression, median

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
import torch

from transom.deploy import ArrayRuntime, export
from transom.deploy.arrays import Held
from transom.deploy.session import empty_state
from transom.registry.compose import compose
from transom.registry.spec import load_spec

LONGEST, VOCAB, WARMING, STEPS = 32768, 1024, 24, 16
PASTS, SPEED_AT, PROMPT = (256, 1024, 4096, 8192, 16384), 8192, 4096
FULL = "{kind: full, n_heads: 12, n_kv_heads: 12}"
LOCAL = "{kind: local, n_heads: 12, n_kv_heads: 12, window: 256}"
LINEAR = "{kind: linear, n_heads: 12, n_kv_heads: 12}"
MODELS: Mapping[str, tuple[str, ...]] = {
    "full": (FULL,),
    "local": (LOCAL,),
    "linear": (LINEAR,),
    "gated_delta": ("{kind: gated_delta, n_heads: 12}",),
    "state_space": ("{kind: state_space, n_heads: 12, d_state: 64}",),
    "local + full": (LOCAL, LOCAL, LOCAL, FULL),
    "linear + full": (LINEAR, LINEAR, LINEAR, FULL),
}


def exported(name: str, work: Path) -> ArrayRuntime:
    """Return the exported folder of a model, made unless it is there."""
    folder = work / name.replace(" ", "")
    if not folder.exists():
        pattern = ", ".join(f"{{attention: {attention}}}" for attention in MODELS[name])
        changes = [
            "model.d_model=768", f"model.max_seq_len={LONGEST}", f"model.embedding.vocab_size={VOCAB}",
            "model.layer.feedforward.d_ff=2048", f"model.layer.attention={MODELS[name][0]}",
            f"model.layers=[{{repeat: {4 // len(MODELS[name])}, pattern: [{pattern}]}}]",
        ]  # fmt: skip
        torch.manual_seed(0)
        export(compose(load_spec("tiny_gpt", changes)).eval(), folder)
    return ArrayRuntime(folder)


def after(runtime: ArrayRuntime, past: int, rows: int) -> Held:
    """Return the state of `rows` after `past` tokens, of random numbers, with slots for as many steps as follow."""
    rng, room = np.random.default_rng(past), past + 64
    values = {}
    for name, value in empty_state(runtime.manifest.state, rows, room).items():
        empty = value.numpy()
        full = np.full_like(empty, past) if name == "seen" else rng.normal(size=empty.shape).astype(empty.dtype)
        values[name] = ort.OrtValue.ortvalue_from_numpy(full)
    return Held(values, np.ones((rows, past), dtype=np.int64), room)


def step_time(runtime: ArrayRuntime, past: int, rows: int) -> float:
    """Return the milliseconds of a step of some rows after `past` tokens, the median of those after the first."""
    state, ids, times = after(runtime, past, rows), np.full((rows, 1), 7, dtype=np.int64), []
    for _ in range(WARMING + STEPS):
        begin = time.perf_counter()
        _, state = runtime.step(ids, None, state)
        times.append(1000 * (time.perf_counter() - begin))
    return median(times[WARMING:])


def prompt_time(runtime: ArrayRuntime, length: int) -> float:
    """Return the milliseconds that a prompt takes."""
    ids, state = np.random.default_rng(0).integers(VOCAB, size=(1, length)), runtime.start(1)
    begin = time.perf_counter()
    runtime.step(ids, None, state)
    return 1000 * (time.perf_counter() - begin)


@contextmanager
def folder_of(work: Path | None) -> Iterator[Path]:
    """Give the folder that is asked for, else one for now."""
    if work is not None:
        yield work
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def measure(names: Sequence[str], work: Path, rounds: int, prompts: int, rows: int) -> None:
    """Print a row a model: milliseconds a step by past, the slope, the speed against `full`, and a prompt."""
    runtimes = {name: exported(name, work) for name in names}
    steps: dict[tuple[str, int], list[float]] = {(name, past): [] for name in names for past in PASTS}
    reading: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for past in PASTS:
            for name in sorted(names, reverse=number % 2 == 0):
                steps[name, past].append(step_time(runtimes[name], past, rows))
        for name in names if number < prompts else ():
            reading[name].append(prompt_time(runtimes[name], PROMPT))
    print(f"onnxruntime {ort.__version__}, rows: {rows}, rounds: {rounds}; ms a step, median (10th to 90th percentile)")
    titles = ["model", *map(str, PASTS), "slope", f"full's at {SPEED_AT}", f"prompt of {PROMPT}, tokens/s"]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for name in names:
        medians = [median(steps[name, past]) for past in PASTS]
        cells = [f"{m:.2f} ({_spread(steps[name, past])})" for m, past in zip(medians, PASTS, strict=True)]
        slope = linear_regression([math.log(past) for past in PASTS], [math.log(m) for m in medians]).slope
        pairs = zip(steps["full", SPEED_AT], steps[name, SPEED_AT], strict=True) if "full" in names else ()
        ratios = [full / own for full, own in pairs]
        faster = f"{median(ratios):.2f} ({_spread(ratios)})" if ratios else ""
        speed = f"{1000 * PROMPT / median(reading[name]):.0f}" if reading[name] else ""
        print(f"| {' | '.join([name, *cells, f'{slope:.3f}', faster, speed])} |")


def _spread(found: Sequence[float]) -> str:
    low, high = np.percentile(found, [10, 90])
    return f"{low:.2f} to {high:.2f}"


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep the exported folders here, and use those that are there")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=3, help="rounds in which a long prompt is read too")
    parser.add_argument("--rows", type=int, default=1, help="rows that take each step together")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    given = parser.parse_args()
    with folder_of(given.work) as work:
        measure(given.only, work, given.rounds, given.prompts, given.rows)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
