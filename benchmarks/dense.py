"""Time training steps, the vocabulary's loss, composing and importing on CPU, beside peers: tables in docs/speed.md.

`python benchmarks/dense.py [PART ...] [--rounds N] [--write]` measures the parts `eager`, `loss` and `start`, all
where none is named, prints their tables, and with `--write` puts them into docs/speed.md. Peers
(transformers, litgpt, x-transformers) are timed where they are installed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bench_startup import spent
from bench_tax import MEDIUM, Rows, twins
from figures import Step, in_turn, machine, most_held, multiplied, peers, ratios, write
from torch import Tensor, nn

from transom.core.losses import cross_entropy_reference, linear_cross_entropy
from transom.registry.compose import build_objective, compose
from transom.registry.spec import load_spec
from transom.training.batches import Batches
from transom.training.precision import Precision
from transom.training.processes import World
from transom.training.step import Step as Passes
from transom.training.update import Updater

BATCH, LENGTH, D_MODEL, D_FF, LAYERS, HEADS, VOCAB = 2, 512, 512, 1376, 6, 8, 16384
OURS = "transom"
HAND = "by hand"
PEERS = ("transformers", "litgpt", "x-transformers")
TOKENS = 2048
VOCABULARIES = (8192, 32768, 131072)
# A decoder of 8 billion parameters, as Llama 3 has them.
LARGE = ("model.d_model=4096", "model.max_seq_len=8192", "model.embedding.vocab_size=128256",
         "model.layer.attention={kind: full, n_heads: 32, n_kv_heads: 8}", "model.layer.feedforward.d_ff=14336",
         "model.layers=[{repeat: 32}]", "model.head.tied=false", "data.tokenizer.vocab_size=128256")  # fmt: skip


def flops() -> float:
    """Return what the matrix products of a training step take: of all weights, and of pairs of tokens."""
    weights = LAYERS * (4 * D_MODEL**2 + 3 * D_MODEL * D_FF) + VOCAB * D_MODEL
    pairs = LAYERS * BATCH * LENGTH**2 * D_MODEL / 2  # each sees those before it
    return 6.0 * BATCH * LENGTH * weights + 3 * 4.0 * pairs


def trained(model: nn.Module, logits: Callable[[Tensor], Tensor], rows: Tensor, settings: Any) -> Step:
    """Return a training step of a model: cross-entropy of its logits, gradients clipped, fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=settings.betas, fused=True)

    def step() -> float:
        loss = F.cross_entropy(logits(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def transformers_() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return the model of transformers, with torch's attention, and its logits."""
    there = import_module("transformers")
    model = there.LlamaForCausalLM(
        there.LlamaConfig(
            vocab_size=VOCAB, hidden_size=D_MODEL, intermediate_size=D_FF, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=LENGTH,
            tie_word_embeddings=True, attn_implementation="sdpa", use_cache=False,
        )
    )  # fmt: skip
    return model, lambda ids: model(input_ids=ids).logits


def litgpt_() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return the model of litgpt, and its logits."""
    model = import_module("litgpt.model").GPT(
        import_module("litgpt.config").Config(
            name="llama-shaped", block_size=LENGTH, n_layer=LAYERS, n_embd=D_MODEL, n_head=HEADS,
            padded_vocab_size=VOCAB, vocab_size=VOCAB, rotary_percentage=1.0, parallel_residual=False, bias=False,
            norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=D_FF,
        )
    )  # fmt: skip
    model.lm_head.weight = model.transformer.wte.weight
    return model, model


def x_transformers_() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return the model of x-transformers, and its logits."""
    there = import_module("x_transformers")
    layers = there.Decoder(dim=D_MODEL, depth=LAYERS, heads=HEADS, attn_dim_head=D_MODEL // HEADS, rotary_pos_emb=True,
                           ff_glu=True, ff_swish=True, ff_mult=D_FF / D_MODEL, ff_no_bias=True, use_rmsnorm=True,
                           attn_flash=True)  # fmt: skip
    model = there.TransformerWrapper(
        num_tokens=VOCAB, max_seq_len=LENGTH, attn_layers=layers, use_abs_pos_emb=False, tie_embedding=True
    )
    return model, model


def steps() -> dict[str, Step]:
    """Return a training step of each model."""
    spec = load_spec("tiny_gpt", [*MEDIUM.values[0], f"train.batch_size={BATCH}", "train.steps=100000"])
    model, hand = twins(spec)
    rows = np.random.default_rng(0).integers(VOCAB, size=(BATCH, LENGTH + 1))
    objective = build_objective(spec, None)
    world = World(torch.device("cpu"))
    batches = Batches(Rows(rows), objective, spec.train, world)  # type: ignore[arg-type]
    updater = Updater(Passes(model, objective).train(), batches, Precision("fp32", world.device))
    numbers = iter(range(1, 100000))
    found: dict[str, Step] = {OURS: lambda: updater.update(next(numbers))["loss"]}
    ids = torch.from_numpy(rows)
    found[HAND] = trained(hand, lambda ids: hand.step(ids, None)[0], ids, spec.train)
    for name, made in zip(PEERS, (transformers_, litgpt_, x_transformers_), strict=True):
        try:
            theirs, logits = made()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        found[name] = trained(theirs.train(), logits, ids, spec.train)
    return found


def stepping(rounds: int) -> str:
    """Time training steps, and the machine's own product of matrices in each round."""
    made = steps()
    for step in made.values():
        step(), step()
    rates: list[float] = []
    found = in_turn(made | {"": lambda: rates.append(multiplied(1024))}, rounds)
    rate = statistics.median(rates)
    lines = ["| | ms | speed against by hand | share of the products' rate |", "|---|---|---|---|"]
    for name in made:
        ms = statistics.median(found[name])
        share = flops() / ms / 1e6 / rate
        lines.append(f"| {name} | {ms:.0f} | {ratios(found[HAND], found[name])} | {share:.0%} |")
    said = f"A training step, eager; medians of {rounds} rounds that take turns, and range; {machine()}; in the same "
    said += f"rounds matrices were multiplied at {rate:.0f} GFLOP/s. Peers: {peers(*PEERS)}."
    return said + "\n\n" + "\n".join(lines) + "\n"


def loss_of(vocabulary: int, *, chunked: bool) -> Step:
    """Return the loss of tokens over a vocabulary, with its gradients."""
    hidden, weight = torch.randn(TOKENS, D_MODEL), torch.randn(vocabulary, D_MODEL) * 0.04
    targets = torch.randint(vocabulary, (TOKENS,))
    hidden.requires_grad_(), weight.requires_grad_()

    def step() -> None:
        if chunked:
            total = linear_cross_entropy(hidden, weight, None, targets)[0]
        else:
            total = cross_entropy_reference(hidden, weight, None, targets)
        torch.autograd.grad(total, (hidden, weight))

    return step


def extra(vocabulary: int, chunked: bool) -> float:
    """Return how many MB the loss adds to the most that a process of its own ever held."""
    torch.set_num_threads(2)
    loss_of(512, chunked=chunked)()
    step = loss_of(vocabulary, chunked=chunked)
    before = most_held()
    step()
    return most_held() - before


def losing(rounds: int) -> str:
    """Time the loss in chunks against that of all logits, and compare what they hold."""
    lines = ["| words | all logits, ms | chunks, ms | time | all logits, MB more | chunks, MB more | memory |"]
    lines.append("|---" * 7 + "|")
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for words in VOCABULARIES:
            made = {str(chunked): loss_of(words, chunked=chunked) for chunked in (False, True)}
            for step in made.values():
                step()
            found = in_turn(made, rounds)
            whole, ours = (statistics.median(found[name]) for name in made)
            more, less = (pool.apply(extra, (words, chunked)) for chunked in (False, True))
            time_ = ratios(found["True"], found["False"])
            lines.append(
                f"| {words:,} | {whole:.0f} | {ours:.0f} | {time_} | {more:.0f} | {less:.0f} | {less / more:.2f} |"
            )
    said = (
        f"Cross-entropy of {TOKENS:,} tokens of width {D_MODEL} over a vocabulary, forwards and backwards; medians of "
    )
    said += f"{rounds} rounds that take turns, and range; {machine()}."
    return said + "\n\n" + "\n".join(lines) + "\n"


def starting(rounds: int) -> str:
    """Time composing 8 billion parameters that are not allocated, and what importing takes."""
    spec = load_spec("tiny_gpt", LARGE)
    made: dict[str, Step] = {OURS: lambda: compose(spec, device="meta")}
    try:
        config = import_module("litgpt.config").Config.from_name("Llama-3-8B")
        made["litgpt"] = lambda: _on_meta(import_module("litgpt.model").GPT, config)
    except ImportError as error:
        print(f"litgpt is left out: {error}", file=sys.stderr)
    for step in made.values():
        step()
    found = in_turn(made, rounds)
    lines = ["| | seconds | against |", "|---|---|---|"]
    ours = statistics.median(found[OURS]) / 1e3
    theirs = f"{ratios(found[OURS], found['litgpt'])} of litgpt's" if "litgpt" in found else "litgpt is not installed"
    lines.append(f"| composing 8B parameters on the meta device | {ours:.3f} | {theirs} |")
    for name, code, against in (
        ("importing `load_spec`", "from transom import load_spec", "pluggy, omegaconf"),
        ("importing `compose`", "from transom import compose", "torch"),
    ):
        pairs = {"ours": ["-c", code], "theirs": ["-c", f"import {against}"]}
        for each in pairs.values():
            spent(*each)
        taken: dict[str, list[float]] = {key: [] for key in pairs}
        for _ in range(rounds):
            for key, each in pairs.items():
                taken[key].append(spent(*each)[0])
        more = statistics.median(a - b for a, b in zip(taken["ours"], taken["theirs"], strict=True))
        share = f"{ratios(taken['ours'], taken['theirs'])} of importing {against}, {more:.2f} s more"
        lines.append(f"| {name} | {statistics.median(taken['ours']):.2f} | {share} |")
    said = f"Medians of {rounds} rounds that take turns, and range; importing in processor seconds of a process of its "
    said += f"own; {machine()}. Peers: {peers('litgpt')}."
    return said + "\n\n" + "\n".join(lines) + "\n"


def _on_meta(kind: Any, config: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = kind(config)
    return model


PARTS: dict[str, Callable[[int], str]] = {
    "eager": stepping,
    "loss": losing,
    "start": starting,
}


def main() -> None:
    """Measure and print; write the page where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", help=f"what to measure: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/speed.md")
    given = parser.parse_args()
    if unknown := set(given.part) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(2)
    for name in given.part or PARTS:
        begin = time.monotonic()
        measured = PARTS[name](given.rounds)
        print(measured, f"({time.monotonic() - begin:.0f} s)\n", flush=True)
        if given.write:
            write(name, measured)


if __name__ == "__main__":
    main()
