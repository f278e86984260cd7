"""What a CUDA machine can do, and what training and decoding reach of it: the parts of `gpu.py` that take models."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cuda_timing import CUDA, Table, middle, ratio, spread, timed
from handwritten import Decoder, copy_weights
from torch import Tensor

from transom.core.losses import linear_cross_entropy
from transom.core.topology import Topology
from transom.registry.compose import build_objective, compose
from transom.registry.spec import Spec, load_spec
from transom.training.batches import Batches
from transom.training.compiled import CompiledStep
from transom.training.precision import Precision, check_precision
from transom.training.processes import World
from transom.training.step import Step
from transom.training.update import Updater

PEAK = 989e12
"""What an H100's tensor cores are said to reach in bf16, in FLOP/s."""
WORDS, WIDTH, DEPTH, HEADS, FEEDFORWARD, LENGTH, BATCH = 32768, 2048, 18, 16, 5632, 2048, 8
"""The dense model of a billion parameters, and its batch."""
PASTS = (256, 1024, 4096, 16384)


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


def dense(*overrides: str) -> tuple[Spec, torch.nn.Module, Callable[[], float]]:
    """Return the dense model of a billion parameters, and its training step, which gives the loss."""
    attention = f"{{kind: full, n_heads: {HEADS}, n_kv_heads: {HEADS}}}"
    spec = load_spec("tiny_gpt", [
        f"model.d_model={WIDTH}", f"model.max_seq_len={LENGTH}", f"model.embedding.vocab_size={WORDS}",
        f"model.layer.attention={attention}", f"model.layer.feedforward.d_ff={FEEDFORWARD}",
        f"model.layers=[{{repeat: {DEPTH}}}]", f"train.batch_size={BATCH}", "train.steps=100000",
        "train.precision=bf16", "train.compile=true", *overrides,
    ])  # fmt: skip
    torch.manual_seed(0)
    with CUDA:
        model = compose(spec).to(CUDA)
    batches = Batches(Rows(rows()), build_objective(spec, None), spec.train, World(CUDA))  # type: ignore[arg-type]
    updater = Updater(Step(model, batches.objective).train(), batches, Precision(spec.train.precision, CUDA))
    taken = 0

    def step() -> float:
        nonlocal taken
        taken += 1
        return updater.update(taken)["loss"]

    return spec, model, step


def rows() -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the batch that the dense model is trained on."""
    return np.random.default_rng(0).integers(WORDS, size=(BATCH, LENGTH + 1))


def measure_dense(table: Table, rate: float) -> None:
    """Train a dense model of a billion parameters, against the same by hand and transformers, all compiled."""
    spec, model, ours = dense()
    ids, size = torch.from_numpy(rows()).to(CUDA), sum(p.numel() for p in model.parameters())
    against(table, rate, size, ours, "by hand", trained(*by_hand(model, ids), spec))
    torch.cuda.empty_cache()
    if (peer := llama(ids)) is not None:
        against(table, rate, size, ours, "transformers", trained(*peer, spec))


def measure_settings(table: Table) -> None:
    """Hold the dense model's step against the same with other settings, whose loss has to fall as well."""
    ours = dense()[2]
    for name, override in {"CUDA graph": "train.cuda_graph=true", "float8": "train.precision=float8"}.items():
        if "float8" in override and (why := check_precision("float8", CUDA)) is not None:
            table.add(f"the dense step by {name}", "left out", "", why)
            continue
        step, losses = dense(override)[2], list[float]()

        def other(step: Callable[[], float] = step, losses: list[float] = losses) -> None:
            losses.append(step())

        times = timed({"ours": ours, "other": other}, inner=2)
        table.add(
            f"the dense step by {name}", f"{middle(times['other']):.1f} ms, {spread(times['other'])}",
            "right" if losses[-1] < losses[0] else "WRONG",
            f"{ratio(times['other'], times['ours'])} times as fast as without; the loss goes from {losses[0]:.3f} to "
            f"{losses[-1]:.3f}",
        )  # fmt: skip
        del step, other
        torch.cuda.empty_cache()


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


def measure_compiled(table: Table) -> None:
    """Time a step of compiled layers in a CUDA graph after each past, and hold it against the step as it stands."""
    for name, model in decoders():
        compiled, found, worst = CompiledStep(model, ""), {}, 0.0
        with torch.inference_mode():
            for past in PASTS:
                ids = torch.randint(8192, (1, past + 1), device=CUDA)
                with torch.compiler.set_stance("force_eager"):
                    room = past + 256
                    kept = [model(input_ids=ids[:, :past], state=model.empty_state(1, room)).state for _ in range(2)]
                    wanted = model(input_ids=ids[:, past:], state=kept[0]).hidden.float()
                first = compiled(ids[:, past:], kept[1])
                worst = max(worst, float((first.hidden.float() - wanted).abs().max() / wanted.abs().max()))

                def step(state: Any = first.state, token: Tensor = ids[:, past:], of: Any = compiled) -> None:
                    of(token, state)  # whose tensors go on, all of them in place

                found[past] = timed({"step": step}, inner=10)["step"]
        figures = ", ".join(f"{middle(each):.2f}" for each in found.values())
        table.add(
            f"decoding, compiled, 4 layers of {name}, past {', '.join(f'{past:,}' for past in PASTS)}",
            f"{figures} ms a token", "right" if worst < 0.03 else "WRONG",
            f"{compiled.path}; off by {worst:.1e} at most",
        )  # fmt: skip


def stepping(model: torch.nn.Module, state: Any, token: Tensor) -> Callable[[], None]:
    """Return a step that goes on from where the last one ended."""

    def step() -> None:
        nonlocal state
        state = model(input_ids=token, state=state).state

    return step


def decoders() -> Iterator[tuple[str, Topology]]:
    """Give small decoders in bf16 by their attention, whose states grow and do not."""
    base = [
        "model.d_model=1024", "model.max_seq_len=16640", "model.embedding.vocab_size=8192",
        "model.layer.feedforward.d_ff=2816", "model.layers=[{repeat: 4}]",
    ]  # fmt: skip
    kinds = {
        "full": "{kind: full, n_heads: 16}", "local 256": "{kind: local, n_heads: 16, window: 256}",
        "linear": "{kind: linear, n_heads: 16}", "gated_delta": "{kind: gated_delta, n_heads: 8}",
    }  # fmt: skip
    for name, options in kinds.items():
        spec = load_spec("tiny_gpt", [*base, f"model.layer.attention={options}"])
        yield name, compose(spec).to(CUDA, torch.bfloat16).eval()


def measure_decoding(table: Table) -> None:
    """Time one step after different pasts."""
    for name, model in decoders():
        found = {}
        with torch.inference_mode():
            for past in PASTS:
                ids = torch.randint(8192, (1, past + 1), device=CUDA)
                state = model(input_ids=ids[:, :past], state=model.empty_state(1)).state

                found[past] = timed({"step": stepping(model, state, ids[:, past:])}, inner=10)["step"]
        x, y = np.log(np.array(PASTS)), np.log(np.array([middle(each) for each in found.values()]))
        figures = ", ".join(f"{middle(each):.2f}" for each in found.values())
        table.add(
            f"decoding, 4 layers of {name}, past {', '.join(f'{past:,}' for past in PASTS)}", f"{figures} ms a token",
            spread(found[PASTS[-1]]), f"slope {np.polyfit(x, y, 1)[0]:.3f}",
        )  # fmt: skip
