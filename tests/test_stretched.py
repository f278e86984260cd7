"""Sums taken a stretch of chunks at a time: their values, gradients, and gradients of gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from transom.core import features, stretched
from transom.core.fading import in_chunks, in_stretches, token_by_token

# T, heads of q and k, heads of v, of which the most are H, D, E; numbers a stretch may have.
SHAPES = [(2, 3, 3, 5, 7, 2**19), (67, 1, 3, 4, 3, 2**19), (331, 2, 6, 6, 5, 2**14), (200, 4, 4, 3, 9, 1)]
pytestmark = pytest.mark.parametrize(("length", "groups", "heads", "d", "e", "at_once"), SHAPES)


@pytest.fixture(autouse=True)
def _at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretched, "AT_ONCE", at_once)


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Return positive fp64 tensors that ask for gradients."""
    return [torch.rand(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


def hold(
    ours: Callable[..., tuple[Tensor, Tensor]], theirs: Callable[..., tuple[Tensor, Tensor]], given: list[Tensor]
) -> None:
    """Compare both results, the gradients of both, and the gradients of a sum of squared gradients."""
    grads: list[Tensor] = []
    seconds = []
    for sums in (ours, theirs):
        found = sums(*given)
        grads = grads or [torch.randn_like(each) for each in found]
        first = torch.autograd.grad(found, given, grads)
        twice = torch.autograd.grad(sums(*given), given, grads, create_graph=True)
        again = torch.autograd.grad(sum(each.square().sum() for each in twice), given)
        seconds.append([*found, *first, *twice, *again])
    for a, b in zip(*seconds, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_fading(length: int, groups: int, heads: int, d: int, e: int) -> None:
    """Against a token at a time; strong decays stand beside weak ones."""
    q, k, v, first = drawn((2, length, groups, d), (2, length, groups, d), (2, length, heads, e), (2, heads, d, e))
    fades = -torch.rand(2, length, heads, dtype=torch.float64)
    fades = (fades * 10.0 ** torch.randint(-3, 3, fades.shape)).requires_grad_()
    if length < 100:
        hold(lambda *t: in_stretches(*t, None), lambda *t: token_by_token(*t, None), [q, k, v, fades, first])
    hold(lambda *t: in_stretches(*t, None), lambda *t: in_chunks(*t, None), [q, k, v, fades, first])


def test_strong_decays_blur_none(length: int, groups: int, heads: int, d: int, e: int) -> None:
    """In fp32, after a decay that leaves nothing, weak ones count as exactly as before it."""
    torch.manual_seed(length)
    q, k, v, first = (
        t.detach().float()
        for t in drawn((1, length, groups, d), (1, length, groups, d), (1, length, heads, e), (1, heads, d, e))
    )
    fades = torch.full((1, length, heads), -1e-4)
    fades[:, length // 3] = -1e5
    y, last = in_stretches(q, k, v, fades, first, None)
    exact, end = token_by_token(*(t.double() for t in (q, k, v, fades, first)), None)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.double(), end, rtol=1e-5, atol=1e-5)


def test_weighed(length: int, groups: int, heads: int, d: int, e: int) -> None:
    """Against chunks of the whole text, with and without a state before it, heads of values shared by queries."""
    q, k, v, before = drawn(
        (2, length, heads, d), (2, length, groups, d), (2, length, groups, e), (2, groups, d, e + 1)
    )

    def plainly(q: Tensor, k: Tensor, v: Tensor, *before: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.nn.functional.pad(v, (0, 1), value=1.0)
        both, sums = features.in_chunks(q, k, wide, before[0] if before else None, None)
        return both[..., :-1] / both[..., -1:], sums

    hold(lambda *t: features.weighed_sums(*t, None), plainly, [q, k, v, before])
    hold(lambda *t: features.weighed_sums(*t, None, None), plainly, [q, k, v])


def test_nothing_to_divide_by(length: int, groups: int, heads: int, d: int, e: int) -> None:
    """Where no key was, what is read is 0, and no gradient is lost."""
    q, k, v = drawn((1, length, heads, d), (1, length, groups, d), (1, length, groups, e))
    none = torch.arange(length)[None, :, None, None] >= 1
    y, _ = features.weighed_sums(q, k * none, v, None, None)
    assert not y[:, :1].any()
    assert all(each.isfinite().all() for each in torch.autograd.grad(y.sum(), (q, k, v)))


def test_lasting(length: int, groups: int, heads: int, d: int, e: int) -> None:
    """Sums that never fade, with a state before them."""
    q, k, v, before = drawn((2, length, heads, d), (2, length, groups, d), (2, length, groups, e), (2, groups, d, e))
    hold(lambda *t: features.causal_sums(*t, None), lambda *t: features.in_chunks(*t, None), [q, k, v, before])
