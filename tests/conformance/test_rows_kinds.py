"""Rows 16, 17 and 26: what positions, norms, feedforwards and heads are each known by."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from transom.core.context import Context
from transom.core.tokens import Tokens

from . import harness
from .harness import Case
from .subjects import Subject, subjects

NORMS = harness.cases("norm")
POSITIONS = [subject for subject in subjects("position") if subject.causal]


def _tokens(first: int, length: int) -> Tokens:
    return Tokens(torch.arange(first, first + length).unsqueeze(0))


def _effect(subject: Subject, first: int, q: Tensor, k: Tensor) -> Tensor:
    """Return what a hook does at positions from `first` on: what it adds, or the products of what it turned."""
    module = harness.position(subject.case)
    tokens = _tokens(first, q.shape[1])
    if subject.hook == "add":
        x = q.flatten(2)
        return module.add(x, tokens) - x
    if subject.hook == "score":
        return module.score(tokens, tokens, q, k)
    return torch.einsum("bthd,bshd->bhts", module.rotate(q, tokens), module.rotate(k, tokens))


@torch.no_grad()
@pytest.mark.parametrize("subject", POSITIONS, ids=str)
def test_row_17_shifting_all_positions(subject: Subject, rng: random.Random) -> None:
    length, shift = rng.choice((7, 23)), rng.choice((1, 19, 150))
    q, k = (torch.randn(2, length, 6, 6, dtype=torch.float64) for _ in range(2))
    found = harness.error(_effect(subject, shift, q, k), _effect(subject, 0, q, k))
    assert found <= 1e-10 if subject.case.cls.relative else found > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("subject", POSITIONS, ids=str)
def test_row_17_an_offset_equals_a_slice(subject: Subject, rng: random.Random) -> None:
    length, offset = 29, rng.randrange(1, 28)
    module = harness.position(subject.case)
    q, k = (torch.randn(2, length, 6, 6, dtype=torch.float64) for _ in range(2))
    whole, part = _tokens(0, length), _tokens(offset, length - offset)
    for rows in (part, whole[offset:], Tokens(part.pos.expand(2, -1), torch.ones(2, length - offset).bool())):
        if subject.hook == "score":
            got, want = module.score(rows, whole, q[:, offset:], k), module.score(whole, whole, q, k)[:, :, offset:]
            assert got.shape[0] in (1, 2)
            harness.close(got.expand(2, -1, -1, -1), want.expand(2, -1, -1, -1))
        else:
            x = q.flatten(2) if subject.hook == "add" else q
            hook = getattr(module, subject.hook)
            harness.close(hook(x[:, offset:], rows), hook(x, whole)[:, offset:])


@torch.no_grad()
@pytest.mark.parametrize("subject", [s for s in POSITIONS if s.hook == "score"], ids=str)
def test_row_17_scores_stand_at_any_tokens(subject: Subject) -> None:
    module = harness.position(subject.case)
    q, tokens, order = torch.randn(1, 23, 6, 6, dtype=torch.float64), _tokens(0, 23), torch.randperm(23)
    turned = tokens.map(lambda t: t[:, order])
    want = module.score(tokens, tokens, q, q)
    harness.close(module.score(turned, tokens, q[:, order], q), want[:, :, order])
    harness.close(module.score(tokens, turned, q, q[:, order]), want[:, :, :, order])


@torch.no_grad()
@pytest.mark.parametrize("subject", [s for s in POSITIONS if s.hook == "rotate"], ids=str)
def test_row_17_a_turn_keeps_lengths(subject: Subject) -> None:
    q = torch.randn(2, 23, 6, 6, dtype=torch.float64)
    turned = harness.position(subject.case).rotate(q, _tokens(0, 23))
    harness.close(turned.norm(dim=-1), q.norm(dim=-1))
    harness.close(turned[:, 0], q[:, 0])
    assert harness.error(turned[:, 1:], q[:, 1:]) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("case", "chosen", "causal"), [p for p in harness.pairs() if p[1].cls.relative], ids=str)
def test_row_17_shifting_a_whole_model(case: Case, chosen: Case, causal: bool, rng: random.Random) -> None:
    layer = harness.sublayer(case, causal=causal)
    positions = [harness.position(chosen, case, causal=causal)]
    x, near, far = harness.vectors(2, 29), _tokens(0, 29), _tokens(rng.choice((3, 64, 101)), 29)
    same = harness.error(*(layer(x, Context(t, causal, positions=positions))[0] for t in (far, near))) <= 1e-10
    # A field that is anchored at a document's start, such as blocks, moves with it: that is declared by `visible`.
    assert same or not torch.equal(layer.visible(near, near), layer.visible(far, far))  # type: ignore[operator]


def _plain(case: Case, **facts: int) -> torch.nn.Module:
    """Return a norm as it starts, without a scale of its own."""
    module: torch.nn.Module = case.part.build(harness.site_of(**facts))
    return module.double()


@torch.no_grad()
@pytest.mark.parametrize("case", NORMS, ids=str)
def test_row_26_norms_bring_any_scale_to_one(case: Case) -> None:
    module, x = _plain(case), 3 * harness.vectors(4, 5) + 1
    y = module(x)
    assert y.square().mean(-1).sub(1).abs().max() < 1e-2
    harness.close(module(x * 1e4), module(x * 1e6), torch.float32)  # eps alone keeps them apart
    tokens = torch.stack([module(row) for row in x.flatten(0, 1)]).unflatten(0, (4, 5))
    harness.close(y, tokens)
    centered = y.mean(-1).abs().max() < 1e-10
    shifted = harness.error(module(x + 7), y) <= 1e-10
    assert bool(centered) == shifted, "a norm that centers does not see a shift, and no other does so"


@pytest.mark.parametrize("dtype", list(harness.TOLERANCE), ids=str)
@pytest.mark.parametrize("case", NORMS, ids=str)
def test_row_26_constant_and_zero_rows_stay_finite(case: Case, dtype: torch.dtype) -> None:
    module = harness.shaken(case.part.build(harness.site_of()), dtype=dtype)
    x = torch.stack([torch.full((harness.D_MODEL,), value) for value in (0.0, 1.0, -3e4, 1e-6)]).to(dtype)
    y = module(x.requires_grad_())
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in harness.gradients(y, x, *module.parameters()))


@pytest.mark.parametrize("case", harness.cases("feedforward"), ids=str)
def test_row_26_feedforwards_take_each_token_on_its_own(case: Case) -> None:
    layer, x = harness.sublayer(case), harness.vectors(2, 7).requires_grad_()
    y = layer(x, harness.context(x))[0]
    (found,) = torch.autograd.grad(y[:, 3].sum(), x, retain_graph=True)
    found[:, 3] = 0
    assert bool(found.any()) == case.cls.mixes_tokens
    if not case.cls.mixes_tokens:
        assert not layer.declared()
        order = torch.randperm(7)
        harness.close(layer(x[:, order], harness.context(x))[0], y[:, order])


@torch.no_grad()
@pytest.mark.parametrize("case", harness.cases("head"), ids=str)
def test_row_7_heads_do_not_read_padding(case: Case, rng: random.Random) -> None:
    subject = Subject(case)
    head = subject.build()[-1]  # type: ignore[index]
    hidden, lengths = harness.vectors(4, 11), [11, rng.randrange(2, 10), 1, 0]
    for side in ("left", "right", "inner"):
        wide, mask = harness.padded(hidden, side, lengths)
        got, want = head(wide, mask), head.reference(wide, mask)
        assert got.isfinite().all()
        harness.close(got, want)
        for row, count in enumerate(lengths[:3]):
            alone = head(hidden[row : row + 1, :count])[0]
            harness.close(got[row][mask[row].bool()] if case.cls.per_token else got[row], alone)
        other = head(wide.masked_fill(mask.unsqueeze(2) == 0, 77.0), mask)
        assert case.cls.per_token or torch.equal(other, got)


@torch.no_grad()
@pytest.mark.parametrize("case", harness.cases("head"), ids=str)
def test_a_head_s_projection_is_what_it_computes(case: Case) -> None:
    head, hidden = Subject(case).build()[-1], harness.vectors(2, 5)  # type: ignore[index]
    projection = head.projection()
    if projection is not None:
        harness.close(torch.nn.functional.linear(hidden, *projection), head(hidden))
