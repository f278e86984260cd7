"""Writes the figures of a model as lines for people."""

from __future__ import annotations

from .estimate import Estimate
from .spec import Spec
from .units import scaled, size

GROWTH = {
    "append": "grows with every token",
    "ring": "a window of fixed size",
    "fixed": "fixed in size",
    "static": "grows with the source",
}


def amounts(spec: Spec, found: Estimate) -> list[str]:
    """Return one line for each figure: its name, the amount, and what it is for."""
    rows = [
        ("parameters", f"{found.parameters:,}"),
        ("weights", size(found.weights)),
        ("forward pass", f"{scaled(found.forward)}FLOPs a token, in rows of {found.tokens:,}"),
        ("state", state(spec, found)),
    ]
    if found.training is not None:
        train, settings = found.training, spec.train
        each = f" in each of {train.processes} processes" if train.processes > 1 else ""
        micro = f"{settings.accumulate} x " if settings.accumulate > 1 else ""
        twice, layers = sum(train.checkpointed.values()), sum(len(stack.layers) for stack in spec.model.stacks.values())
        rest = f"activations, of {twice} layers of {layers} computed twice" if twice else "activations"
        share = "a share of " if settings.shard and train.processes > 1 else ""
        held = f"{size(train.held)} {share}weights, gradients and moments; the rest {rest}"
        rows += [
            ("training step", f"{scaled(train.flops)}FLOPs, {micro}{train.rows} rows of {found.tokens:,}{each}"),
            ("training memory", f"{size(train.peak)} at most, in {settings.precision} on a CPU{each}: {held}"),
        ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {amount}" for name, amount in rows]


def state(spec: Spec, found: Estimate) -> str:
    """Return how large the state is, and how it grows."""
    if not found.state:
        return "none: it sees its whole input at once"
    grows = ", ".join(GROWTH[how] for how in found.grows)
    return f"{size(found.state)} a row after {spec.model.max_seq_len:,} tokens; {grows}"
