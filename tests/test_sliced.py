"""Attention on CPU, in slices and chunks: values, gradients and gradients of gradients are those of the definition."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from transom.core import sliced
from transom.core.component import Site
from transom.core.context import Context
from transom.core.tokens import Tokens
from transom.plugins.attention.linear import LinearAttention
from transom.plugins.attention.local import LocalAttention
from transom.plugins.attention.sink import SinkAttention
from transom.plugins.attention.sparse import SparseAttention

KINDS: dict[str, Any] = {
    "local": (LocalAttention, {"window": 37}),
    "wide": (LocalAttention, {"window": 101}),
    "around": (LocalAttention, {"around": 21}),
    "sink": (SinkAttention, {"window": 37, "sinks": 3}),
    "sinks": (SinkAttention, {"window": 23, "sinks": 71}),
    "sparse": (SparseAttention, {"block": 16, "n_window": 2, "n_random": 2}),
    "strided": (SparseAttention, {"block": 17, "n_global": 2, "n_window": 1, "stride": 3}),
}
HEADS = [(1, 1), (3, 3), (4, 2), (3, 1)]


def drawn(kind: str, causal: bool, dtype: torch.dtype) -> tuple[Any, list[Tensor], Context]:
    """Return a mechanism of odd sizes, q, k and v (B, T, H, D) that are not contiguous, and their context."""
    (heads, shared), width, length = random.choice(HEADS), random.randint(3, 9), random.randint(150, 311)
    made, options = KINDS[kind]
    config = made.Config(n_heads=heads, n_kv_heads=shared, head_dim=width, **options)
    mixes = made(config, Site(d_model=heads * width, max_seq_len=311, causal=causal))
    qkv = [torch.randn(2, n, length, width, dtype=dtype).transpose(1, 2) for n in (heads, shared, shared)]
    context = Context(Tokens(torch.arange(length).unsqueeze(0)), causal=causal)
    return mixes, [t.requires_grad_() for t in qkv], context


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the calls that slices get."""
    found: list[int] = []
    inner = sliced.sliced_attention

    def counted(*args: Any, **options: Any) -> Tensor:
        found.append(1)
        return inner(*args, **options)

    monkeypatch.setattr(sliced, "sliced_attention", counted)
    return found


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 2e-4), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind: str, causal: bool, dtype: torch.dtype, close: float, calls: list[int]) -> None:
    mixes, qkv, context = drawn(kind, causal, dtype)
    found, expected = mixes(*qkv, context)[0], mixes.reference(*qkv, context)[0]
    assert calls == [1]
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    grad = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(y, qkv, grad) for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


@pytest.mark.parametrize("kind", ["local", "sparse"])
def test_gradients_of_gradients(kind: str, calls: list[int]) -> None:
    mixes, (q, k, v), context = drawn(kind, True, torch.float64)
    q = q.detach()
    found = []
    for mix in (mixes, mixes.reference):
        first = torch.autograd.grad(mix(q, k, v, context)[0].square().sum(), (k, v), create_graph=True)
        found.append(torch.autograd.grad(torch.stack([t.pow(3).sum() for t in first]).sum(), (k, v)))
    assert calls == [1]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("kind", ["local", "sparse"])
def test_what_slices_do_not_know_takes_another_path(kind: str, calls: list[int]) -> None:
    mixes, (q, k, v), plain = drawn(kind, True, torch.float32)
    length = q.shape[1]
    valid = (torch.arange(length) < torch.tensor([[length], [length - 9]])).expand(2, -1)
    padded = Context(Tokens(plain.tokens.pos, valid), causal=True)
    k, v = (t * valid[:, :, None, None] for t in (k, v))
    found, expected = mixes(q, k, v, padded)[0], mixes.reference(q, k, v, padded)[0]
    torch.testing.assert_close(found[valid], expected[valid], rtol=2e-4, atol=2e-5)
    torch.func.vjp(lambda x: mixes(x, k, v, plain)[0], q)
    assert not calls


@pytest.mark.parametrize("kind", ["local", "sparse"])
def test_without_its_kernels_the_gathered_blocks_stay(
    kind: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixes, qkv, context = drawn(kind, True, torch.float64)
    assert "slices" in mixes.path(311)
    monkeypatch.setattr(sliced, "_BACKWARD", None)
    torch.testing.assert_close(mixes(*qkv, context)[0], mixes.reference(*qkv, context)[0])
    assert not calls
    assert f"torch {torch.__version__} has no" in mixes.path(311)


@pytest.mark.parametrize("shared", [1, 2])
def test_linear_sums_with_the_normaliser_as_a_column(shared: int) -> None:
    length, width, heads = random.randint(65, 200), random.randint(3, 9), 2
    config = LinearAttention.Config(n_heads=heads, n_kv_heads=shared, head_dim=width)
    mixes = LinearAttention(config, Site(d_model=heads * width, max_seq_len=200))
    shapes = [(2, length, n, width) for n in (heads, shared, shared)]
    qkv = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    sums = {"kv": torch.rand(2, shared, width, width).double(), "k": torch.rand(2, shared, width).double()}
    tokens = Tokens(torch.arange(length).unsqueeze(0))
    for state in (None, sums):
        context = Context(tokens, causal=True, seen=None if state is None else torch.tensor([5, 7]))
        (found, after), (expected, known) = mixes(*qkv, context, state), mixes.reference(*qkv, context, state)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(after, known)
        grad = torch.randn_like(found)
        torch.testing.assert_close(*(torch.autograd.grad(y, qkv, grad) for y in (found, expected)))
