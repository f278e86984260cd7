"""Attentions against their papers, written down token by token and head by head with none of our code."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from transom.core.component import Site
from transom.core.context import Context
from transom.core.tokens import Tokens
from transom.registry.manager import default


def made(name: str, length: int, *, causal: bool = True, layer: int = 1, **options: Any) -> tuple[Any, Context]:
    """Return a mechanism in fp64, with every parameter drawn, and the context of `length` plain tokens."""
    cls = default().get("attention", name)
    config = cls.Config(**options)
    site = Site(d_model=config.n_heads * config.head_dim, max_seq_len=length, causal=causal, layer=layer)
    mechanism = cls(config.resolved(site.d_model), site).double()
    for parameter in mechanism.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mechanism, Context(Tokens(torch.arange(length).unsqueeze(0)), causal=causal)


def drawn(length: int, *heads: int, width: int) -> list[Tensor]:
    """Return tensors (2, length, heads, width) in fp64."""
    return [torch.randn(2, length, n, width, dtype=torch.float64) for n in heads]


def test_sink_sees_what_is_near_and_what_is_first() -> None:
    length, window, sinks = random.randint(70, 150), random.randint(2, 30), random.randint(1, 9)
    mechanism, context = made("sink", length, n_heads=2, head_dim=5, window=window, sinks=sinks)
    q, k, v = drawn(length, 2, 2, 2, width=5)
    got, _ = mechanism(q, k, v, context)
    for t in range(length):
        seen = [s for s in range(t + 1) if s < sinks or t - s < window]
        weights = (torch.einsum("bhd,bshd->bhs", q[:, t], k[:, seen]) / math.sqrt(5)).softmax(-1)
        torch.testing.assert_close(got[:, t], torch.einsum("bhs,bshd->bhd", weights, v[:, seen]))


@pytest.mark.parametrize("window", [4, None])
def test_dilated_sees_every_nth_token(window: int | None) -> None:
    length, dilation = random.randint(30, 90), random.randint(2, 5)
    mechanism, context = made("dilated", length, n_heads=2, head_dim=5, window=window, dilation=dilation)
    q, k, v = drawn(length, 2, 2, 2, width=5)
    got, _ = mechanism(q, k, v, context)
    for t in range(length):
        seen = list(range(t, -1, -dilation))[:window]
        weights = (torch.einsum("bhd,bshd->bhs", q[:, t], k[:, seen]) / math.sqrt(5)).softmax(-1)
        torch.testing.assert_close(got[:, t], torch.einsum("bhs,bshd->bhd", weights, v[:, seen]))


@pytest.mark.parametrize("causal", [True, False])
def test_local_p_sees_a_window_about_the_centre_that_a_query_predicts(causal: bool) -> None:
    length, width, window = random.randint(170, 260), random.randint(3, 8), random.randint(2, 9)
    mechanism, context = made("local_p", length, causal=causal, n_heads=4, n_kv_heads=2, head_dim=width, window=window)
    torch.nn.init.normal_(mechanism.outer)
    q, k, v = drawn(length, 4, 2, 2, width=width)
    got, _ = mechanism(q, k, v, context)
    want, within = torch.zeros_like(q), window - 1
    for b in range(2):
        for t in range(length):
            count = t + 1 if causal else length
            for h in range(4):
                logit = (torch.tanh(q[b, t, h] @ mechanism.inner[h]) @ mechanism.outer[h]).item()
                centre = count / (1 + math.exp(-logit))
                nearest = min(math.floor(centre + 0.5), count - 1)
                near = range(max(nearest - within, 0), min(nearest + within, count - 1) + 1)
                weights = (k[b, near, h // 2] @ q[b, t, h] / math.sqrt(width)).softmax(-1)
                factor = [math.exp(-((s - centre) ** 2) / (2 * (within / 2) ** 2)) for s in near]
                want[b, t, h] = (weights * torch.tensor(factor, dtype=torch.float64)) @ v[b, near, h // 2]
    torch.testing.assert_close(got, want)


def test_native_sparse_adds_what_is_compressed_chosen_and_near() -> None:
    length, width, window, block, chosen, near, span, stride = random.randint(70, 110), 4, 7, 6, 4, 2, 5, 3
    cls = default().get("attention", "native_sparse")
    config = cls.Config(
        n_heads=4, n_kv_heads=2, window=window, block=block, chosen=chosen, near=near, span=span, stride=stride
    )
    layer = cls(config, Site(d_model=4 * width, max_seq_len=length)).double().requires_grad_(False)
    x = torch.randn(2, length, 4 * width, dtype=torch.float64)
    got, _ = layer(x, Context(Tokens(torch.arange(length).unsqueeze(0)), causal=True))
    q, kv = layer.up(x).unflatten(-1, (16, width)).split((4, 12), 2)
    gates = layer.gate(x).sigmoid().unflatten(-1, (3, 4))
    y = torch.zeros_like(q)
    for b, group in ((b, g) for b in range(2) for g in range(2)):
        (ck, cv), (sk, sv), (wk, wv) = kv[b].unflatten(1, (3, 2, 2))[:, :, :, group].permute(1, 2, 0, 3)
        firsts = range(0, length - span + 1, stride)
        packed = [
            torch.stack([
                torch.nn.functional.silu((each[i : i + span] + layer.places[n]).flatten() @ layer.inner[n])
                @ layer.outer[n] for i in firsts
            ]) for n, each in ((0, ck), (1, cv))
        ]  # fmt: skip
        for t in range(length):
            done = [m for m, i in enumerate(firsts) if i + span - 1 <= t]
            heads = q[b, t, 2 * group : 2 * group + 2] / math.sqrt(width)
            weights = (heads @ packed[0][done].T).softmax(-1)
            own, score = t // block, dict[int, float]()
            for n in range(own + 1):
                shared = [len(set(range(firsts[m], firsts[m] + span)) & set(range(n * block, (n + 1) * block)))
                          for m in done]  # fmt: skip
                score[n] = float((weights.sum(0) * torch.tensor(shared, dtype=torch.float64)).sum())
            always = {0, *range(max(own - near + 1, 0), own + 1)}
            rest = sorted((n for n in score if n not in always and score[n] > 0), key=lambda n: -score[n])
            taken = always | set(rest[: chosen - len(always)])
            seen = [s for s in range(t + 1) if s // block in taken]
            close = range(max(t - window + 1, 0), t + 1)
            mixed = [
                weights @ packed[1][done],
                (heads @ sk[seen].T).softmax(-1) @ sv[seen],
                (heads @ wk[close].T).softmax(-1) @ wv[close],
            ]
            for h in range(2):
                gate = gates[b, t, :, 2 * group + h]
                y[b, t, 2 * group + h] = sum(g * m[h] for g, m in zip(gate, mixed, strict=True))
    torch.testing.assert_close(got, layer.out(y.flatten(-2)))


@pytest.mark.parametrize("layer", [1, 3])
def test_differential_takes_one_map_from_another(layer: int) -> None:
    length, width = random.randint(5, 30), random.randint(3, 8)
    mechanism, context = made("differential", length, n_heads=8, n_kv_heads=4, head_dim=width, layer=layer)
    q, k, v = drawn(length, 8, 4, 4, width=width)
    got, _ = mechanism(q, k, v, context)
    start = 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))
    (q1, k1), (q2, k2) = mechanism.factors.detach()
    share = math.exp(q1 @ k1) - math.exp(q2 @ k2) + start
    hidden = torch.ones(length, length).triu(1).bool()
    for pair in range(4):
        keys = [2 * (pair // 2), 2 * (pair // 2) + 1]
        maps = [
            (q[:, :, 2 * pair + i] @ k[:, :, keys[i]].mT / math.sqrt(width)).masked_fill(hidden, -math.inf).softmax(-1)
            for i in (0, 1)
        ]
        y = (maps[0] - share * maps[1]) @ torch.cat([v[:, :, keys[0]], v[:, :, keys[1]]], dim=-1)
        y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mechanism.gain * (1 - start)
        torch.testing.assert_close(torch.cat([got[:, :, 2 * pair], got[:, :, 2 * pair + 1]], dim=-1), y)


@pytest.mark.parametrize("causal", [True, False])
def test_performer_is_softmax_on_average(causal: bool) -> None:
    length, width = random.randint(5, 20), random.randint(3, 6)
    near, far = (made("performer", length, n_heads=2, head_dim=width, n_features=n, causal=causal) for n in (5000, 7))
    q, k, v = drawn(length, 2, 2, 2, width=width)
    q, k = q / 2, k / 2
    hidden = torch.ones(length, length).triu(1).bool() & causal
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(width)
    exact = torch.einsum("bhts,bshd->bthd", scores.masked_fill(hidden, -math.inf).softmax(-1), v)
    errors = [float((mechanism(q, k, v, context)[0] - exact).abs().mean()) for mechanism, context in (near, far)]
    assert errors[0] < 0.1 * float(exact.abs().mean())
    assert errors[0] < errors[1] / 4  # 27 times as small, on average


def test_performer_draws_orthogonal_directions_of_normal_lengths() -> None:
    mechanism, _ = made("performer", 9, n_heads=1, head_dim=40, n_features=95)
    for block in mechanism.drawn.split(40):
        apart = block @ block.T
        torch.testing.assert_close(apart, torch.diag(apart.diagonal()), atol=1e-5, rtol=0)
    assert 0.9 < float(mechanism.drawn.square().mean()) < 1.1


@pytest.mark.parametrize("shared", [True, False])
def test_linformer_projects_a_text_along_its_length(shared: bool) -> None:
    length, rank = random.randint(5, 30), random.randint(2, 9)
    options = {"n_heads": 2, "head_dim": 3, "rank": rank, "shared": shared}
    mechanism, context = made("linformer", length, causal=False, **options)
    q, k, v = drawn(length, 2, 2, 2, width=3)
    got, _ = mechanism(q, k, v, context)
    e, f = mechanism.weight[0], mechanism.weight[0 if shared else 1]
    for head in range(2):
        weights = (q[:, :, head] @ (e @ k[:, :, head]).mT / math.sqrt(3)).softmax(-1)
        torch.testing.assert_close(got[:, :, head], weights @ (f @ v[:, :, head]))


def mixer(name: str, width: int, **options: Any) -> Any:
    """Return a mixer in fp64, with every parameter drawn."""
    cls = default().get("attention", name)
    made = cls(cls.Config(**options), Site(d_model=width, max_seq_len=500)).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def faded(mixer: Any, x: Tensor, decay: Tensor, heads: int, key: int, value: int) -> Tensor:
    """Return what a recurrence over x (T, C) gives, decay (T, H, D): token by token and head by head."""
    q, k, v, gate = (x @ mixer.up.weight.T).split([heads * key, heads * key, heads * value, heads * value], dim=-1)
    rows = []
    states = [torch.zeros(key, value, dtype=x.dtype) for _ in range(heads)]
    for t in range(len(x)):
        row = []
        for h in range(heads):
            own = slice(h * key, (h + 1) * key)
            states[h] = decay[t, h, :, None] * states[h] + torch.outer(k[t, own], v[t, h * value : (h + 1) * value])
            y = q[t, own] @ states[h] / math.sqrt(key)
            row.append(y / (y.square().mean() + 1e-5).sqrt())
        rows.append(torch.cat(row) * mixer.norm.weight * torch.nn.functional.silu(gate[t]))
    return torch.stack(rows) @ mixer.out.weight.T


def test_retention_is_a_recurrence_of_fixed_rates() -> None:
    length, key, value = random.randint(70, 150), random.randint(2, 5), random.randint(2, 5)
    made = mixer("retention", 9, n_heads=3, head_dim=key, v_dim=value, span=(4.0, 64.0))
    x = torch.randn(1, length, 9, dtype=torch.float64)
    rates = torch.tensor([1 - 1 / 4, 1 - 1 / 16, 1 - 1 / 64], dtype=torch.float64)
    decay = rates[None, :, None].expand(length, 3, key)
    got, _ = made(x, Context(Tokens(torch.arange(length).unsqueeze(0)), causal=True))
    torch.testing.assert_close(got[0], faded(made, x[0], decay, 3, key, value))


@pytest.mark.parametrize("decay", ["entry", "head"])
def test_gated_linear_fades_by_what_tokens_say(decay: str) -> None:
    length, key, value = random.randint(70, 150), random.randint(2, 5), random.randint(2, 5)
    made = mixer("gated_linear", 9, n_heads=3, head_dim=key, v_dim=value, decay=decay, rank=4)
    x = torch.randn(1, length, 9, dtype=torch.float64) * 5
    left = made.fade(x[0]).sigmoid() ** (1 / 16)
    left = left.unflatten(-1, (3, key)) if decay == "entry" else left.unsqueeze(-1).expand(-1, -1, key)
    got, _ = made(x, Context(Tokens(torch.arange(length).unsqueeze(0)), causal=True))
    torch.testing.assert_close(got[0], faded(made, x[0], left, 3, key, value))
