"""What the parts of `gpu.py` share: a table of rows, and steps that take turns on a CUDA device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

ROUNDS = 8
CUDA = torch.device("cuda")


@dataclass
class Table:
    """Collect rows: what was measured, the figure, its spread, and what it is compared with."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, what: str, figure: str, spread: str = "", compared: str = "") -> None:
        """Add a row, and print it."""
        self.rows.append((what, figure, spread, compared))
        print(f"{what}: {figure} {f'({spread})' if spread else ''} {compared}", flush=True)

    def __str__(self) -> str:
        head = "| measured | figure | spread | compared with |\n|---|---|---|---|\n"
        return head + "".join(f"| {' | '.join(row)} |\n" for row in self.rows)


def timed(steps: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, inner: int = 1) -> dict[str, list[float]]:
    """Return milliseconds of each step, a number a round; the steps take turns within a round."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for number in range(rounds):
        for name in sorted(steps, reverse=number % 2 == 0):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            first.record()
            for _ in range(inner):
                steps[name]()
            last.record()
            torch.cuda.synchronize()
            found[name].append(first.elapsed_time(last) / inner)
    return found


def those_that_run(
    table: Table, what: str, steps: Mapping[str, Callable[[], object]]
) -> dict[str, Callable[[], object]]:
    """Return the steps that run at all; one that fails becomes a row, and loses none of the others."""
    alive = {}
    for name, step in steps.items():
        try:
            step()
            alive[name] = step
        except Exception as error:  # whatever a backend or a peer has to say
            table.add(f"{what}, {name}", "failed", "", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    return alive


def middle(times: list[float]) -> float:
    """Return the median."""
    return statistics.median(times)


def spread(times: list[float]) -> str:
    """Return the range, in words."""
    return f"{min(times):.3g} to {max(times):.3g} ms"


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Return how the medians of two lists of rounds compare: theirs over ours, above 1 where ours are faster."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})"


def limit_tuning(most: int) -> None:
    """Let Triton kernels that tune themselves try `most` settings each, for everybody: all of them take minutes."""
    from triton.runtime.autotuner import Autotuner

    all_of_them = Autotuner.prune_configs

    def some(self: Any, kwargs: Any) -> Any:
        found = all_of_them(self, kwargs)
        return found[:: -(-len(found) // most)]

    Autotuner.prune_configs = some
