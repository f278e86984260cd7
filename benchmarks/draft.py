"""Measures what a draft saves: a model writes alone and with a small one ahead of it, in turn.

    python benchmarks/draft.py [--rounds 9] [--threads 2]

Both are trained first, on the running Python's own library with one tokenizer, and kept in build/draft: that takes some
ten minutes, once. The table goes into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from comparison import ROOT, VERSIONS, publish, table

import transom
from transom.generation import Draft, Sampling, generate
from transom.training import Run
from transom.training.text import drafting, writing

FOLDER = ROOT / "build" / "draft"
MODEL = [
    "model.d_model=512", "model.layers=[{repeat: 8}]", "model.layer.attention={kind: full, n_heads: 8, n_kv_heads: 4}",
    "model.layer.feedforward.d_ff=1376", "train.lr=1.5e-3", "train.steps=150",
]  # fmt: skip
DRAFT = ["model.layers=[{repeat: 2}]", "train.steps=300"]
PROMPTS = ["def read(self, size=-1):\n", "class Queue:\n", "import os\n", "    for name in names:\n"]
TOKENS, AHEAD = 128, (2, 4, 6)
WAYS = {"the likeliest": Sampling(TOKENS), "drawn, temperature 0.8": Sampling(TOKENS, temperature=0.8, seed=1)}


def runs() -> tuple[Run, Run]:
    """Return the runs of the model and of its draft, trained where they are not yet."""
    found = []
    for name, options in (("model", MODEL), ("draft", DRAFT)):
        spec = transom.load_spec("tiny_gpt", options)
        found.append(transom.train(spec, out=FOLDER / name))
    return found[0], found[1]


def speeds(model: Run, cheap: Run, sampling: Sampling, rounds: int) -> dict[int, tuple[list[float], float]]:
    """Return, by tokens ahead (0: alone), tokens a second of each round, and the share of proposals written."""
    ready = writing(model, PROMPTS)
    helper = drafting(cheap, ready)
    found: dict[int, list[float]] = {ahead: [] for ahead in (0, *AHEAD)}
    drafts = {ahead: Draft(helper, ahead) for ahead in AHEAD}
    wanted = None
    for number in range(rounds + 1):  # the first warms up
        for ahead, took in found.items():
            begun = time.perf_counter()
            written = [
                generate(ready.stepper, [prompt], sampling, draft=drafts.get(ahead))[0].ids for prompt in ready.prompts
            ]
            if number:
                took.append(sum(map(len, written)) / (time.perf_counter() - begun))
            wanted = wanted or written
            assert written == wanted, "a draft changes no token"
    shares = {ahead: draft.accepted / draft.proposed for ahead, draft in drafts.items()}
    return {ahead: (took, shares.get(ahead, 0.0)) for ahead, took in found.items()}


def spread(values: list[float], digits: int) -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, cheap = runs()
    lines = []
    for name, sampling in WAYS.items():
        found = speeds(model, cheap, sampling, options.rounds)
        alone = found[0][0]
        for ahead, (took, share) in found.items():
            ratios = [one / other for one, other in zip(took, alone, strict=True)]
            words = [f"{share:.0%}", spread(ratios, 2)] if ahead else ["", ""]
            lines.append([name, str(ahead) if ahead else "alone", spread(took, 0), *words])
    sizes = [sum(p.numel() for p in transom.load(run).parameters()) / 1e6 for run in (model, cheap)]
    steps = [run.step for run in (model, cheap)]
    publish(
        "Writing with a draft",
        f"`python benchmarks/draft.py --rounds {options.rounds}`: a decoder of {sizes[0]:.1f}M parameters after "
        f"{steps[0]} steps on the standard library's sources writes {TOKENS} tokens after each of {len(PROMPTS)} "
        f"prompts, one at a time, alone and with one of {sizes[1]:.1f}M ahead of it; fp32, {options.threads} threads, "
        f"{VERSIONS}. Median (range) of rounds in which all take turns; every text is the one written alone.\n\n"
        + table(["tokens", "ahead", "tokens/s", "of the proposals written", "against alone"], lines)
        + "\nModels so little trained agree in few places, and a draft that is written so seldom costs more than it "
        "saves: reading a few tokens takes longer than one here, and a proposal its own step. A draft that always "
        "agrees saves as many calls of the model as it runs ahead.\n",
        ROOT / "docs" / "benchmarks.md",
    )


if __name__ == "__main__":
    main()
