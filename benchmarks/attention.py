"""Time attention against length on CPU, beside full attention and peers' forms: a table in docs/speed.md.

`python benchmarks/attention.py [--rounds N]` prints the table; `--write` puts it into docs/speed.md and draws its lines
beside it. Peers (the packages
local-attention and fla-core, the latter with triton) are timed where they are installed. A row is one mechanism, 8
heads of 64, causal, one text of fp32, forward and backward; mechanisms take turns within a round.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from figures import PAGE, Step, copied, in_turn, machine, most_held, multiplied, peers, write
from torch import Tensor

from transom.core.component import Site
from transom.core.context import Context
from transom.core.fading import in_stretches
from transom.core.tokens import Tokens
from transom.plugins.attention.full import FullAttention
from transom.plugins.attention.gated_delta import in_chunks as correcting
from transom.plugins.attention.linear import LinearAttention
from transom.plugins.attention.local import LocalAttention
from transom.plugins.attention.sparse import SparseAttention

HEADS, WIDTH, WINDOW = 8, 64, 256
LENGTHS = (512, 1024, 2048, 4096, 8192)
DRAWN = PAGE.parent / "speed.svg"


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
    return lambda: torch.autograd.grad(in_stretches(q, k, v, fade, first, None)[0], (q, k, v), grad)


def corrected(length: int) -> list[Tensor]:
    """Return q, k of length 1, v, the logarithm of a decay, and how much is corrected, a number a head and token."""
    q, k, v = tensors(length)
    k = F.normalize(k.detach(), dim=-1).requires_grad_()
    fade, share = -torch.rand(1, length, HEADS), torch.rand(1, length, HEADS)
    return [q, k, v, fade, share]


def delta(length: int) -> Step:
    """Return a step of the sums that each token corrects, as `gated_delta` takes them."""
    q, k, v, fade, share = corrected(length)
    first, grad = torch.zeros(1, HEADS, WIDTH, WIDTH), torch.randn_like(v)
    return lambda: torch.autograd.grad(correcting(q, k, v, fade, share, first, None)[0], (q, k, v), grad)


def their_delta(length: int) -> Step:
    """Return a step of fla's naive chunks of the gated delta rule."""
    call = import_module("fla.ops.gated_delta_rule.naive").naive_chunk_gated_delta_rule
    q, k, v, fade, share = corrected(length)
    grad = torch.randn_like(v)
    return lambda: torch.autograd.grad(call(q, k, v, fade, share, scale=1.0)[0], (q, k, v), grad)


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
    "gated delta": delta,
    "gated delta, fla naive": their_delta,
}
# Rows beside those of a peer for the same work.
PAIRS = {
    "window 256": "window 256, local-attention",
    "linear": "linear, fla naive",
    "scalar decay": "scalar decay, fla naive",
    "gated delta": "gated delta, fla naive",
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
    return in_turn(steps, rounds)


def extra(name: str, length: int) -> float:
    """Return how many MB a step adds to the most that a process of its own ever held."""
    torch.set_num_threads(2)
    ROWS[name](1024)()  # the code that a step takes is read now: it counts for no memory of its own
    step = ROWS[name](length)
    before = most_held()
    step()
    return most_held() - before


def exponent(medians: dict[int, float]) -> float:
    """Return the slope of log time against log length from 1k on."""
    points = [(math.log(t), math.log(ms)) for t, ms in medians.items() if t >= 1024]
    x, y = (statistics.mean(p[i] for p in points) for i in (0, 1))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def table(rounds: int) -> tuple[str, dict[str, dict[int, float]]]:
    """Measure; return the page's table with what it was measured on, and the median times by row and length."""
    product, moved = multiplied(), copied()
    all_times = {length: rounds_of(length, rounds) for length in LENGTHS}
    last = LENGTHS[-1]
    full = all_times[last]["full"]
    lines = [f"| | {' | '.join(map(str, LENGTHS))} | exponent | of full at {last}: median, spread | MB more |"]
    lines.append("|---" * (len(LENGTHS) + 4) + "|")
    found = {}
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in all_times[last]:
            medians = {length: statistics.median(times[name]) for length, times in all_times.items()}
            each = [a / b for a, b in zip(all_times[last][name], full, strict=True)]
            share = f"{statistics.median(each):.3f}, {min(each):.3f} to {max(each):.3f}"
            more = pool.apply(extra, (name, last))
            times = " | ".join(f"{ms:.0f}" for ms in medians.values())
            lines.append(f"| {name} | {times} | {exponent(medians):.2f} | {share} | {more:.0f} |")
            found[name] = medians
    said = f"Milliseconds, medians of {rounds} rounds that take turns; {machine()}; in the same run matrices were "
    said += f"multiplied at {product:.0f} GFLOP/s and memory copied at {moved:.1f} GB/s. "
    said += f"Peers: {peers('local-attention', 'fla-core')}."
    return said + "\n\n" + "\n".join(lines) + "\n" + against(all_times), found


def against(all_times: Mapping[int, Mapping[str, list[float]]]) -> str:
    """Return, for each row that a peer has as well, the median and spread of the ratios of each length's rounds."""
    lines = [f"\n| of the peer's time | {' | '.join(map(str, LENGTHS))} |", "|---" * (len(LENGTHS) + 1) + "|"]
    for ours, theirs in PAIRS.items():
        cells = []
        for found in all_times.values():
            each = [a / b for a, b in zip(found.get(ours, ()), found.get(theirs, ()), strict=False)]
            cells.append(f"{statistics.median(each):.2f}, {min(each):.2f} to {max(each):.2f}" if each else "")
        lines.append(f"| {ours} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(found: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Draw time against length, both by logarithms: a peer's line broken, in the colour of ours."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "speed"}  # text stays text: fewer bytes
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="tokens", ylabel="ms, forwards and backwards", xscale="log", yscale="log")
    theirs = {peer: ours for ours, peer in PAIRS.items()}
    colours = {name: f"C{i}" for i, name in enumerate(name for name in ROWS if name not in theirs)}
    for name, medians in found.items():
        line = "--" if name in theirs else "-"
        axes.plot([*medians], [*medians.values()], line, label=name, color=colours[theirs.get(name, name)], marker=".")
    axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure and print; write and draw where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="put the table into docs/speed.md, and draw its lines")
    given = parser.parse_args()
    torch.set_num_threads(2)
    measured, found = table(given.rounds)
    print(measured)
    if given.write:
        write("attention", measured)
        draw(found, DRAWN)


if __name__ == "__main__":
    main()
