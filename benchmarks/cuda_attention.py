"""Whether attention's CUDA paths are right, and what they take against length: the parts of `gpu.py` of one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cuda_timing import CUDA, Table, middle, ratio, spread, those_that_run, timed
from torch import Tensor

from transom.core.component import Site
from transom.core.context import Context
from transom.core.tokens import Tokens
from transom.plugins.attention.full import FullAttention
from transom.plugins.attention.gated_delta import GatedDeltaAttention
from transom.plugins.attention.linear import LinearAttention
from transom.plugins.attention.local import LocalAttention
from transom.plugins.attention.sparse import SparseAttention
from transom.plugins.attention.state_space import StateSpaceAttention

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


LENGTHS = (1024, 4096, 16384, 65536)


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
