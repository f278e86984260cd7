"""Compares the memory that `transom show` estimates for a training step with what a process takes for it.

    python benchmarks/memory.py [SPEC ...]

Each spec is trained for a few steps in a process of its own. What it held just before the model was built is taken off
the most that it held afterwards; a tiny model was trained before that, so that code and thread pools are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from transom.core.objective import Prepared
from transom.registry.compose import compose
from transom.registry.estimate import longest_batch
from transom.registry.settings import TrainSettings
from transom.registry.show import describe
from transom.registry.spec import Spec, load_spec, parse_spec
from transom.training.precision import Precision
from transom.training.processes import World
from transom.training.setup import check_settings, compute_twice
from transom.training.step import Step
from transom.training.update import Updater

SMALL = """
model:
  topology: decoder
  d_model: 16
  max_seq_len: 16
  embedding: {kind: token, vocab_size: 512}
  position: rope
  layer: {norm: rms, attention: {kind: full, n_heads: 2}, feedforward: glu}
  layers: [{repeat: 1}]
  norm: rms
  head: lm
objective: causal_lm
data: {kind: text, seq_len: 16, tokenizer: {kind: bpe, vocab_size: 512}}
"""
WIDER = ("model.d_model=512", "model.layer.attention.n_heads=8", "model.layer.feedforward.d_ff=1376",
         "model.layers=[{repeat: 6}]", "model.embedding.vocab_size=16384", "data.seq_len=256")  # fmt: skip
CASES = (("tiny_gpt",), ("tiny_gpt", *WIDER), ("tiny_t5",), ("tiny_gpt_lstm",))

# Memory that is freed goes back to the system: else how freed pieces lie among others would be measured as well.
HONEST = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@dataclass
class Fixed:
    """Give the same micro batches at every step, as `transom.training.batches.Batches` gives its own."""

    settings: TrainSettings
    part: Prepared
    world: World

    def of_step(self, step: int) -> list[Prepared]:
        """Return a step's micro batches."""
        return [self.part] * self.settings.accumulate


def train(spec: Spec, steps: int, twice: Mapping[str, int]) -> None:
    """Train the model of a spec on a made-up batch, with so many layers of each stack that compute twice."""
    model = compose(spec)
    objective, part = longest_batch(spec, model)
    here = World(torch.device("cpu"))
    compute_twice(model, twice)
    batches = Fixed(spec.train, part, here)
    updater = Updater(Step(model, objective).train(), batches, Precision(spec.train.precision, here.device))  # type: ignore[arg-type]
    for step in range(1, steps + 1):
        updater.update(step)


def held(what: str) -> int:
    """Return this process's resident memory in bytes: `VmRSS` now, `VmHWM` at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what + ":"))


def measured(spec: Spec) -> int:
    """Return the most resident memory of this process in three steps, above what it holds now, in bytes."""
    twice = check_settings(spec, World(torch.device("cpu")))
    train(parse_spec(SMALL, [f"train.precision={spec.train.precision}"]), 2, {})
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    train(spec, 3, twice)
    return held("VmHWM") - before


def in_child(args: tuple[str, ...], environment: dict[str, str]) -> int:
    """Return what a fresh process measures for the spec of these arguments, in bytes."""
    command = [sys.executable, __file__, "--child", json.dumps(args)]
    return int(subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    """Print a line for each spec: estimated, measured with freed memory given back, and as malloc does by itself."""
    parser = argparse.ArgumentParser(description="Compare estimated with measured training memory.")
    parser.add_argument("spec", nargs="*", help="a spec; overrides follow it after commas")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        name, *overrides = json.loads(given.child)
        print(measured(load_spec(name, overrides)))
        return
    print(f"{'spec':14} {'parameters':>12} {'estimated':>10} {'measured':>10} {'off by':>7} {'as it comes':>12}")
    for args in [tuple(text.split(",")) for text in given.spec] or CASES:
        found = describe(load_spec(args[0], args[1:])).estimate
        assert found.training is not None, found.notes
        peak, honest, plain = found.training.peak, in_child(args, HONEST), in_child(args, {})
        sizes = f"{peak / 1e6:7.1f} MB {honest / 1e6:7.1f} MB {peak / honest - 1:+7.1%} {plain / 1e6:9.1f} MB"
        print(f"{args[0]:14} {found.parameters:12,} {sizes}", flush=True)


if __name__ == "__main__":
    main()
