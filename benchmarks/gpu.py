"""All that needs a CUDA machine, in one run of some minutes: what is right, what it takes, and one table last.

    python benchmarks/gpu.py [--markdown docs/gpu.md] [PART ...]

Peers that are not installed (transformers, flash-linear-attention) are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from handwritten import Decoder, copy_weights
from torch import Tensor

from transom.core.component import Site
from transom.core.context import Context
from transom.core.losses import linear_cross_entropy
from transom.core.tokens import Tokens
from transom.plugins.attention.full import FullAttention
from transom.plugins.attention.gated_delta import GatedDeltaAttention
from transom.plugins.attention.linear import LinearAttention
from transom.plugins.attention.local import LocalAttention
from transom.plugins.attention.sparse import SparseAttention
from transom.plugins.attention.state_space import StateSpaceAttention
from transom.registry.compose import build_objective, compose
from transom.registry.spec import load_spec
from transom.training.batches import Batches
from transom.training.precision import Precision
from transom.training.processes import World
from transom.training.step import Step
from transom.training.update import Updater

ROUNDS = 8
CUDA = torch.device("cuda")
TUNED = 6
"""Settings that a kernel which tunes itself tries; flash-linear-attention's have up to 48."""
PEAK = 989e12
"""What an H100's tensor cores are said to reach in bf16, in FLOP/s."""
WORDS, WIDTH, DEPTH, HEADS, FEEDFORWARD, LENGTH, BATCH = 32768, 2048, 18, 16, 5632, 2048, 8
"""The dense model of a billion parameters, and its batch."""


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


# -- what is right ----------------------------------------------------------------------------------------------------

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "full": (FullAttention, {}),
    "full, grouped": (FullAttention, {"n_kv_heads": 4}),
    "local": (LocalAttention, {"window": 100}),
    "local, grouped": (LocalAttention, {"window": 100, "n_kv_heads": 4}),
    "sparse": (SparseAttention, {"block": 64, "n_random": 2}),
    "sparse, grouped": (SparseAttention, {"block": 128, "n_kv_heads": 4}),
    "linear": (LinearAttention, {}),
    "linear, grouped": (LinearAttention, {"n_kv_heads": 4}),
    "state_space": (StateSpaceAttention, {"head_dim": 64, "d_state": 64}),
    "gated_delta": (GatedDeltaAttention, {"head_dim": 64, "n_key_heads": 8}),
}


def plain(length: int) -> Context:
    """Return the context of plain tokens that see no later ones."""
    return Context(Tokens(torch.arange(length, device=CUDA).unsqueeze(0)), causal=True)


def layer_of(cls: Any, options: Mapping[str, Any], d_model: int, most: int, n_heads: int) -> torch.nn.Module:
    """Return one attention layer on the device, without positions."""
    site = Site(d_model=d_model, max_seq_len=most, n_heads=n_heads, head_dim=d_model // n_heads)
    with torch.device("cpu"):
        config = cls.Config(n_heads=n_heads, **options)
        layer: torch.nn.Module = cls.build(config, site)
    return layer.to(CUDA)


def check_right(table: Table) -> None:
    """Compare each layer in bf16 with the same in fp64, in values and gradients; double precision takes plain paths."""
    length, d_model = 1000, 1024
    for name, (cls, options) in CASES.items():
        torch.manual_seed(0)
        layer = layer_of(cls, options, d_model, 1024, 16)
        x = torch.randn(2, length, d_model, device=CUDA)
        upstream = torch.randn_like(x)
        errors = {}
        found = {}
        for dtype in (torch.bfloat16, torch.float64):
            layer.to(torch.float32 if dtype is torch.bfloat16 else dtype)
            layer.zero_grad()
            given = x.detach().to(torch.float32 if dtype is torch.bfloat16 else dtype).requires_grad_()
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
                y, _ = layer(given, plain(length))
            y.backward(upstream.to(y.dtype))
            found[dtype] = {"y": y.detach().double(), "dx": given.grad.double()} | {
                f"d {n}": p.grad.double() for n, p in layer.named_parameters() if p.grad is not None
            }
        for key, wanted in found[torch.float64].items():
            errors[key] = float((found[torch.bfloat16][key] - wanted).norm() / wanted.norm())
        worst = max(errors, key=lambda key: errors[key])
        mechanism = getattr(layer, "mechanism", layer)
        verdict = "right" if errors[worst] < 0.03 else "WRONG"
        table.add(
            f"{name}: bf16 against fp64", f"{errors['y']:.2e} of y, {errors[worst]:.2e} of {worst}", verdict,
            mechanism.on_cuda() or mechanism.path(length),
        )  # fmt: skip


# -- what the machine can do, and a dense step ------------------------------------------------------------------------


def measure_limits(table: Table) -> float:
    """Measure products of matrices and copies; return the FLOP/s of the first."""
    a, b = (torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    times = timed({"product": lambda: a @ b}, inner=10)["product"]
    rate = 2 * 8192**3 / middle(times) * 1e3
    table.add("product of 8192^2 matrices, bf16", f"{rate / 1e12:.0f} TFLOP/s", spread(times), "")
    big, other = (torch.empty(2**30, device=CUDA, dtype=torch.uint8) for _ in range(2))
    times = timed({"copy": lambda: other.copy_(big)}, inner=10)["copy"]
    table.add("copy of 1 GiB", f"{2 * 2**30 / middle(times) / 1e6:.0f} GB/s, read and written", spread(times), "")
    return rate


@dataclass
class Rows:
    """Stand for prepared data: the same random rows (B, T + 1) at every step."""

    rows: np.ndarray[Any, np.dtype[np.int64]]

    def batches_per_epoch(self, size: int, parts: int) -> int:
        """Say that there is one batch."""
        return 1

    def batch(self, number: int, size: int, part: int = 0, parts: int = 1) -> dict[str, Any]:
        """Return the batch."""
        return {"input_ids": self.rows}


def trained(model: torch.nn.Module, loss: Callable[[], Tensor], spec: Any) -> Callable[[], None]:
    """Return a training step around a loss, as one writes it by hand: bf16, clipped, fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.train.lr, betas=spec.train.betas, fused=True)

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value.item()

    return step


def by_hand(model: torch.nn.Module, ids: Tensor) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """Return the hand-written model with the weights of a composed one, and its loss, compiled whole."""
    with CUDA:
        hand = Decoder(WORDS, WIDTH, DEPTH, HEADS, HEADS, FEEDFORWARD, LENGTH)
    copy_weights(hand, model)
    loss = torch.compile(hand.loss)
    return hand, lambda: loss(ids[:, :-1], ids[:, 1:])


def llama(ids: Tensor) -> tuple[torch.nn.Module, Callable[[], Tensor]] | None:
    """Return transformers' model of the same shape, compiled, and its loss; None where it is not installed."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=FEEDFORWARD, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    with CUDA:
        model = LlamaForCausalLM(config).train()
    run = torch.compile(model)
    return model, lambda: run(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss


def measure_dense(table: Table, rate: float) -> None:
    """Train a dense model of a billion parameters, against the same by hand and transformers, all compiled."""
    attention = f"{{kind: full, n_heads: {HEADS}, n_kv_heads: {HEADS}}}"
    spec = load_spec("tiny_gpt", [
        f"model.d_model={WIDTH}", f"model.max_seq_len={LENGTH}", f"model.embedding.vocab_size={WORDS}",
        f"model.layer.attention={attention}", f"model.layer.feedforward.d_ff={FEEDFORWARD}",
        f"model.layers=[{{repeat: {DEPTH}}}]", f"train.batch_size={BATCH}", "train.steps=100000",
        "train.precision=bf16", "train.compile=true",
    ])  # fmt: skip
    torch.manual_seed(0)
    with CUDA:
        model = compose(spec).to(CUDA)
    rows = np.random.default_rng(0).integers(WORDS, size=(BATCH, LENGTH + 1))
    ids = torch.from_numpy(rows).to(CUDA)
    size = sum(p.numel() for p in model.parameters())
    world = World(CUDA)
    batches = Batches(Rows(rows), build_objective(spec, None), spec.train, world)  # type: ignore[arg-type]
    updater = Updater(Step(model, batches.objective).train(), batches, Precision("bf16", CUDA))
    taken = 0

    def ours() -> None:
        nonlocal taken
        taken += 1
        updater.update(taken)

    against(table, rate, size, ours, "by hand", trained(*by_hand(model, ids), spec))
    torch.cuda.empty_cache()
    if (peer := llama(ids)) is not None:
        against(table, rate, size, ours, "transformers", trained(*peer, spec))


def against(
    table: Table, rate: float, size: int, ours: Callable[[], object], peer: str, theirs: Callable[[], object]
) -> None:
    """Let two training steps take turns, and say what each reaches."""
    steps = {"ours": ours, peer: theirs}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        if not (name == "ours" and peer == "transformers"):  # which was compiled before
            table.add(
                f"first step of {size / 1e9:.2f}B, {name}", f"{time.perf_counter() - start:.1f} s", "", "compiling"
            )
        step()
    times = timed(steps, inner=2)
    tokens = BATCH * LENGTH
    flop = 6 * size * tokens + 6 * DEPTH * WIDTH * LENGTH * tokens  # the causal half of the scores
    for name, each in times.items():
        done = flop / middle(each) * 1e3
        table.add(
            f"dense {size / 1e9:.2f}B, {tokens:,} tokens, bf16 compiled, {name}",
            f"{middle(each):.1f} ms, {tokens / middle(each) * 1e3:,.0f} tokens/s, {done / PEAK:.1%} of 989 TFLOP/s, "
            f"{done / rate:.1%} of the product's rate",
            spread(each),
            "" if name == "ours" else f"ours is {ratio(times['ours'], each)} times as fast",
        )


# -- the vocabulary's loss --------------------------------------------------------------------------------------------


def measure_loss(table: Table) -> None:
    """Compare the loss in chunks with full logits, in time and in memory besides its inputs."""
    for words in (32768, 131072):
        hidden = torch.randn(8192, 2048, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
        weight = (0.02 * torch.randn(words, 2048, device=CUDA)).to(torch.bfloat16).requires_grad_()
        targets = torch.randint(words, (8192,), device=CUDA)

        def chunked(hidden: Tensor = hidden, weight: Tensor = weight, targets: Tensor = targets) -> None:
            linear_cross_entropy(hidden, weight, None, targets)[0].backward()
            hidden.grad = weight.grad = None

        def full(hidden: Tensor = hidden, weight: Tensor = weight, targets: Tensor = targets) -> None:
            F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum").backward()
            hidden.grad = weight.grad = None

        memory = {}
        for name, step in {"chunked": chunked, "full": full}.items():
            step()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            memory[name] = torch.cuda.max_memory_allocated() - before
        times = timed({"chunked": chunked, "full": full}, inner=3)
        each = [a / b for a, b in zip(times["chunked"], times["full"], strict=True)]
        table.add(
            f"vocabulary loss, {words // 1024}k words, 8,192 tokens",
            f"{middle(times['chunked']):.2f} ms, {memory['chunked'] / 2**20:.0f} MB", spread(times["chunked"]),
            f"{statistics.median(each):.2f} of full logits' time, {memory['chunked'] / memory['full']:.2f} of memory",
        )  # fmt: skip


# -- attention against length -----------------------------------------------------------------------------------------

LENGTHS = (1024, 4096, 16384, 65536)
PASTS = (256, 1024, 4096, 16384)


def both_ways(call: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> Callable[[], None]:
    """Return a forward and backward pass."""

    def step() -> None:
        y = call(*inputs)
        torch.autograd.grad(y, inputs, upstream[..., : y.shape[-1]].to(y.dtype))

    return step


def peers(length: int) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Yield what flash-linear-attention's own calls give for q, k, v and decays."""
    try:
        from fla.ops.linear_attn import chunk_linear_attn
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return
    yield "fla linear", lambda q, k, v: chunk_linear_attn(F.elu(q) + 1, F.elu(k) + 1, v, scale=1.0, normalize=True)[0]
    yield "fla simple_gla", lambda q, k, v: chunk_simple_gla(q, k, v, q[..., 0].float().sigmoid().log(), scale=1.0)[0]


def measure_attention(table: Table) -> None:
    """Time forward and backward of the mechanisms alone, 16 heads of 64, batch 1, against SDPA's backends."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads, width = 16, 64

    def sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                by_head = (t.transpose(1, 2) for t in (q, k, v))
                return F.scaled_dot_product_attention(*by_head, is_causal=True).transpose(1, 2)

        return call

    options = {
        "full": (FullAttention, {}),
        "local 256": (LocalAttention, {"window": 256}),
        "sparse 64": (SparseAttention, {"block": 64, "n_random": 2}),
        "sparse 128": (SparseAttention, {"block": 128, "n_random": 2}),
        "linear": (LinearAttention, {}),
    }
    medians: dict[str, dict[int, float]] = {}
    for length in LENGTHS:
        inputs = [
            torch.randn(1, length, heads, width, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        ]
        upstream = torch.randn(1, length, heads, width, device=CUDA, dtype=torch.bfloat16)
        steps: dict[str, Callable[[], object]] = {}
        density = {}
        for name, (cls, chosen) in options.items():
            config = cls.Config(n_heads=heads, n_kv_heads=heads, head_dim=width, **chosen)
            mechanism = cls(config, Site(d_model=heads * width, max_seq_len=length)).to(CUDA)

            def call(q: Tensor, k: Tensor, v: Tensor, mechanism: Any = mechanism, length: int = length) -> Tensor:
                y: Tensor = mechanism(q, k, v, plain(length))[0]
                return y

            steps[name] = both_ways(call, inputs, upstream)
            if isinstance(mechanism, SparseAttention):
                block = mechanism.config.block
                density[name] = float(mechanism.table.sum()) * block * block / (length * length / 2)
        density["local 256"] = min(1.0, 2 * 256 / length)
        steps["SDPA flash"] = both_ways(sdpa(SDPBackend.FLASH_ATTENTION), inputs, upstream)
        steps["SDPA cuDNN"] = both_ways(sdpa(SDPBackend.CUDNN_ATTENTION), inputs, upstream)
        for name, peer in peers(length):
            steps[name] = both_ways(peer, inputs, upstream)
        alive = those_that_run(table, f"attention, {length:,} tokens", steps)
        times = timed(alive, inner=3 if length < 65536 else 1)
        full = times["SDPA flash"]
        for name, each in times.items():
            said = f"{middle(each) / middle(full):.3f} of SDPA flash"
            if name in density:
                said += (
                    f", {middle(each) / middle(full) / density[name]:.2f} of it times the density {density[name]:.4f}"
                )
            if name == "linear" and "fla linear" in times:
                said += f"; {ratio(each, times['fla linear'])} times as fast as fla's own call"
            table.add(f"attention, {name}, {length:,} tokens", f"{middle(each):.3f} ms", spread(each), said)
            medians.setdefault(name, {})[length] = middle(each)
    for name, found in medians.items():
        if len(found) > 2:
            x, y = (np.log(np.array(list(values))) for values in (list(found)[1:], list(found.values())[1:]))
            table.add(f"attention, {name}, exponent from 4k to 64k", f"{np.polyfit(x, y, 1)[0]:.2f}")


def measure_layers(table: Table) -> None:
    """Time whole mixer layers, forward and backward, against flash-linear-attention's own layers of the same sizes."""
    d_model, length = 1024, 4096
    x = torch.randn(4, length, d_model, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn_like(x)
    ours = layer_of(GatedDeltaAttention, {"head_dim": 64}, d_model, length, 16).to(torch.bfloat16)
    steps = {"ours": both_ways(lambda t: ours(t, plain(length))[0], [x], upstream)}
    try:
        from fla.layers import GatedDeltaNet

        theirs = GatedDeltaNet(
            hidden_size=d_model, head_dim=64, num_heads=16, expand_v=1.0, use_short_conv=True, conv_size=4, mode="chunk"
        ).to(CUDA, torch.bfloat16)
        steps["fla"] = both_ways(lambda t: theirs(t)[0], [x], upstream)
    except Exception as error:  # a peer that can't be had must not lose the run
        table.add("layer gated_delta of fla", "left out", "", f"{type(error).__name__}: {str(error)[:120]}")
    times = timed(steps, inner=3)
    for name, each in times.items():
        said = (
            "" if name == "fla" or "fla" not in times else f"{ratio(each, times['fla'])} times as fast as fla's layer"
        )
        table.add(f"layer gated_delta, 4 x {length:,} tokens, {name}", f"{middle(each):.2f} ms", spread(each), said)


# -- decoding ---------------------------------------------------------------------------------------------------------


def stepping(model: torch.nn.Module, state: Any, token: Tensor) -> Callable[[], None]:
    """Return a step that goes on from where the last one ended."""

    def step() -> None:
        nonlocal state
        state = model(input_ids=token, state=state).state

    return step


def measure_decoding(table: Table) -> None:
    """Time one step after different pasts, in bf16, for states that grow and states that do not."""
    base = [
        "model.d_model=1024", "model.max_seq_len=16640", "model.embedding.vocab_size=8192",
        "model.layer.feedforward.d_ff=2816", "model.layers=[{repeat: 4}]",
    ]  # fmt: skip
    pasts = PASTS
    kinds = {
        "full": "{kind: full, n_heads: 16}", "local 256": "{kind: local, n_heads: 16, window: 256}",
        "linear": "{kind: linear, n_heads: 16}", "gated_delta": "{kind: gated_delta, n_heads: 8}",
    }  # fmt: skip
    for name, options in kinds.items():
        spec = load_spec("tiny_gpt", [*base, f"model.layer.attention={options}"])
        model = compose(spec).to(CUDA, torch.bfloat16).eval()
        found = {}
        with torch.inference_mode():
            for past in pasts:
                ids = torch.randint(8192, (1, past + 1), device=CUDA)
                state = model(input_ids=ids[:, :past], state=model.empty_state(1)).state

                found[past] = timed({"step": stepping(model, state, ids[:, past:])}, inner=10)["step"]
        x, y = np.log(np.array(pasts)), np.log(np.array([middle(each) for each in found.values()]))
        figures = ", ".join(f"{middle(each):.2f}" for each in found.values())
        table.add(
            f"decoding, 4 layers of {name}, past {', '.join(f'{past:,}' for past in pasts)}", f"{figures} ms a token",
            spread(found[pasts[-1]]), f"slope {np.polyfit(x, y, 1)[0]:.3f}",
        )  # fmt: skip


def versions() -> str:
    """Return the device and what ran on it."""
    found = []
    for name in ("torch", "triton", "transformers", "fla-core", "transom"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, {', '.join(found)}"


def ran(table: Table, name: str, part: Callable[[], None]) -> bool:
    """Run a part and say whether it got to its end; what it fails with is a row, and costs no other part."""
    try:
        part()
    except Exception as error:
        traceback.print_exc()
        table.add(name, "FAILED", "", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        return False
    return True


def main() -> int:
    """Run every part; one that fails is a row of the table, and an exit code of 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--markdown", type=Path, help="a page to write the table to")
    parser.add_argument("parts", nargs="*", help="what to measure: all, unless named")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: PyTorch sees no CUDA device here", file=sys.stderr)
        return 2
    limit_tuning(TUNED)
    table, failed, start, rate = Table(), False, time.perf_counter(), PEAK

    def limits() -> None:
        nonlocal rate
        rate = measure_limits(table)

    parts = {
        "limits": limits, "loss": lambda: measure_loss(table), "decoding": lambda: measure_decoding(table),
        "dense": lambda: measure_dense(table, rate), "right": lambda: check_right(table),
        "attention": lambda: measure_attention(table), "layers": lambda: measure_layers(table),
    }  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))
    try:
        for name in asked.parts or parts:
            print(f"-- {name}, at {time.perf_counter() - start:.0f} s", flush=True)
            failed |= not ran(table, name, parts[name])
            torch.cuda.empty_cache()
    except SystemExit:
        table.add("all else", "not measured", "", "the run was stopped")
    print(f"-- done, at {time.perf_counter() - start:.0f} s\n\n{versions()}\n\n{table}")
    if asked.markdown is not None:
        page = f"# On a CUDA machine\n\n`python benchmarks/gpu.py --markdown docs/gpu.md`: {versions()}.\n\n{table}"
        asked.markdown.write_text(page)
    return int(failed or any(row[2] == "WRONG" for row in table.rows))


if __name__ == "__main__":
    sys.exit(main())
