"""What benchmarks that write a page share: the machine's own rates, memory, turns, and tables between marks."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

Step = Callable[[], object]
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"


def seconds(step: Step) -> float:
    """Return how long a step takes."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def in_turn(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return milliseconds of each step, a number a round; all take turns within a round, every other one backwards."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in sorted(steps, key=list(steps).index, reverse=number % 2 == 1):
            found[name].append(seconds(steps[name]) * 1e3)
    return found


def ratios(ours: list[float], theirs: list[float]) -> str:
    """Return the median of the ratios of each round, with the least and the most."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def multiplied(size: int = 2048) -> float:
    """Return GFLOP/s of a product of matrices of fp32."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / statistics.median(seconds(lambda: a @ b) for _ in range(5)) / 1e9


def copied() -> float:
    """Return GB/s that memory is copied at, bytes read and written together."""
    big = torch.randn(2**25)
    return 8 * 2**25 / statistics.median(seconds(lambda: big + 0) for _ in range(5)) / 1e9


def most_held() -> float:
    """Return the most MB that this process held; what getrusage says would be inherited from the one that began it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux counts it"
    return int(found[1]) / 1024


def machine() -> str:
    """Name the number of threads, torch and the processor's kind."""
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"


def peers(*names: str) -> str:
    """Return the versions of the packages that are there."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def write(mark: str, measured: str) -> None:
    """Put what was measured between a mark and the next end on the page; at its end where it has no such mark."""
    begin, end = f"<!-- {mark} -->", "<!-- end -->"
    text = PAGE.read_text()
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    PAGE.write_text(re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{measured}{end}", text, flags=re.DOTALL))
