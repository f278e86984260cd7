"""Time attention against length on CPU, beside full attention and peers' forms: a table in docs/speed.md.

`python benchmarks/attention.py [ROUNDS]` prints the table; `--write` puts it into docs/speed.md. Peers (the packages
local-attention and fla-core, the latter with triton) are timed where they are installed. A row is one mechanism, 8
heads of 64, causal, one text of fp32, forward and backward; mechanisms take turns within a round.
"""

from __future__ import annotations

import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transom.core.component import Site
from transom.core.context import Context
from transom.core.fading import in_chunks
from transom.core.tokens import Tokens
from transom.plugins.attention.full import FullAttention
from transom.plugins.attention.linear import LinearAttention
from transom.plugins.attention.local import LocalAttention
from transom.plugins.attention.sparse import SparseAttention

HEADS, WIDTH, WINDOW = 8, 64, 256
LENGTHS = (512, 1024, 2048, 4096, 8192)
Step = Callable[[], object]
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"


def tensors(length: int, *more: int) -> list[Tensor]:
    """Return q, k and v (1, T, H, D) that ask for gradients, and tensors (1, T, H) for each of `more`."""
    shapes = [(1, length, HEADS, WIDTH)] * 3 + [(1, length, HEADS)] * len(more)
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def ours(kind: Any, **options: Any) -> Callable[[int], Step]:
    """Return what makes a step of one of the mechanisms at a length."""

    def made(length: int) -> Step:
        config = kind.Config(n_heads=HEADS, n_kv_heads=HEADS, head_dim=WIDTH, **options)
        mixes, (q, k, v) = kind(config, Site(d_model=HEADS * WIDTH, max_seq_len=max(LENGTHS))), tensors(length)
        grad = torch.randn_like(q)

        def step() -> None:
            context = Context(Tokens(torch.arange(length).unsqueeze(0)), causal=True)
            torch.autograd.grad(mixes(q, k, v, context)[0], (q, k, v), grad)

        return step

    return made


def decay(length: int) -> Step:
    """Return a step of the sums that fade by one number a head and token, as `state_space` takes them."""
    q, k, v = tensors(length)
    fade = -torch.rand(1, length, HEADS)
    first, grad = torch.zeros(1, HEADS, WIDTH, WIDTH), torch.randn_like(v)
    return lambda: torch.autograd.grad(in_chunks(q, k, v, fade, first, None)[0], (q, k, v), grad)


def their_window(length: int) -> Step:
    """Return a step of the package local-attention, set up as its page says."""
    theirs = import_module("local_attention").LocalAttention
    mixes = theirs(window_size=WINDOW, causal=True, look_backward=1, look_forward=0, exact_windowsize=True,
                   autopad=True, use_rotary_pos_emb=False)  # fmt: skip
    q, k, v = (t.detach().transpose(1, 2).contiguous().requires_grad_() for t in tensors(length))
    grad = torch.randn_like(q)
    return lambda: torch.autograd.grad(mixes(q, k, v), (q, k, v), grad)


def their_linear(length: int) -> Step:
    """Return a step of fla's naive chunks."""
    call = import_module("fla.ops.linear_attn.naive").naive_chunk_linear_attn
    q, k, v = tensors(length)
    grad = torch.randn_like(q)

    def step() -> None:
        found = call(F.elu(q) + 1, F.elu(k) + 1, v, normalize=True)
        torch.autograd.grad(found[0] if isinstance(found, tuple) else found, (q, k, v), grad)

    return step


def their_decay(length: int) -> Step:
    """Return a step of fla's naive chunks with scalar decay."""
    call = import_module("fla.ops.simple_gla.naive").naive_chunk_simple_gla
    q, k, v = tensors(length)
    fade, grad = -torch.rand(1, length, HEADS), torch.randn_like(q)

    def step() -> None:
        found = call(q, k, v, fade, scale=1.0)
        torch.autograd.grad(found[0] if isinstance(found, tuple) else found, (q, k, v), grad)

    return step


ROWS: dict[str, Callable[[int], Step]] = {
    "full": ours(FullAttention),
    "window 256": ours(LocalAttention, window=WINDOW),
    "window 256, local-attention": their_window,
    "blocks of 64: 1 global, 3 near, 2 random": ours(SparseAttention, n_random=2),
    "linear": ours(LinearAttention),
    "linear, fla naive": their_linear,
    "scalar decay": decay,
    "scalar decay, fla naive": their_decay,
}


def rounds_of(length: int, rounds: int) -> dict[str, list[float]]:
    """Return milliseconds of each row at a length, a number a round; rows whose package is missing are left out."""
    steps = {}
    for name, made in ROWS.items():
        try:
            steps[name] = made(length)
            steps[name]()
        except ImportError as error:
            steps.pop(name, None)
            print(f"{name} is left out: {error}", file=sys.stderr)
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            found[name].append((time.perf_counter() - begin) * 1e3)
    return found


def extra(name: str, length: int) -> float:
    """Return how many MB a step adds to the most that a process of its own ever held."""
    torch.set_num_threads(2)
    ROWS[name](256)()
    step = ROWS[name](length)
    before = most_held()
    step()
    return most_held() - before


def most_held() -> float:
    """Return the most MB that this process held; what getrusage says would be inherited from the one that began it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux counts it"
    return int(found[1]) / 1024


def machine() -> tuple[float, float]:
    """Return GFLOP/s of a product of matrices, and GB/s copied."""
    a, b, big = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.randn(2**25)
    rates = []
    for work, run in ((2 * 2048**3, lambda: a @ b), (8 * 2**25, lambda: big + 0)):
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        rates.append(work / statistics.median(times) / 1e9)
    return rates[0], rates[1]


def exponent(medians: dict[int, float]) -> float:
    """Return the slope of log time against log length from 1k on."""
    points = [(math.log(t), math.log(ms)) for t, ms in medians.items() if t >= 1024]
    x, y = (statistics.mean(p[i] for p in points) for i in (0, 1))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def table(rounds: int) -> str:
    """Measure, and return the page's table with what it was measured on."""
    product, copied = machine()
    all_times = {length: rounds_of(length, rounds) for length in LENGTHS}
    last = LENGTHS[-1]
    full = all_times[last]["full"]
    lines = [f"| | {' | '.join(map(str, LENGTHS))} | exponent | of full at {last}: median, spread | MB more |"]
    lines.append("|---" * (len(LENGTHS) + 4) + "|")
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in all_times[last]:
            medians = {length: statistics.median(found[name]) for length, found in all_times.items()}
            each = [a / b for a, b in zip(all_times[last][name], full, strict=True)]
            share = f"{statistics.median(each):.3f}, {min(each):.3f} to {max(each):.3f}"
            more = pool.apply(extra, (name, last))
            times = " | ".join(f"{ms:.0f}" for ms in medians.values())
            lines.append(f"| {name} | {times} | {exponent(medians):.2f} | {share} | {more:.0f} |")
    said = f"Milliseconds, medians of {rounds} rounds that take turns; {torch.get_num_threads()} threads, torch "
    said += f"{torch.__version__}, {platform.machine()}; in the same run matrices were multiplied at {product:.0f} "
    said += f"GFLOP/s and memory copied at {copied:.1f} GB/s. Peers: {peers()}."
    return said + "\n\n" + "\n".join(lines) + "\n"


def peers() -> str:
    """Return the versions of the peers that are there."""
    found = []
    for name in ("local-attention", "fla-core"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def main() -> None:
    """Measure and print; write the page where asked to."""
    torch.set_num_threads(2)
    numbers = [int(a) for a in sys.argv[1:] if a.isdigit()]
    measured = table(numbers[0] if numbers else 8)
    print(measured)
    if "--write" in sys.argv:
        marks = ("<!-- attention -->", "<!-- end -->")
        page = re.sub(
            f"{marks[0]}.*{marks[1]}", lambda _: f"{marks[0]}\n{measured}{marks[1]}", PAGE.read_text(), flags=re.S
        )
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
