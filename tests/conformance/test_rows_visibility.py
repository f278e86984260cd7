"""Rows 4 to 8, 12 and 16: who reaches whom, whatever stands elsewhere in the row."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from transom.core.context import Context
from transom.core.heads import MultiHeadAttention
from transom.core.tokens import Tokens

from . import harness
from .harness import Case

ATTENTIONS = harness.directed(harness.cases("attention"))
CAUSAL = harness.able("causal")
SIDES = ("left", "right", "inner")


@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_row_4_no_gradient_from_later_tokens(case: Case, rng: random.Random) -> None:
    length = rng.choice(harness.lengths(case))
    model = harness.stack([case, case], positions=harness.serving(case))
    x = harness.vectors(2, length).requires_grad_()
    y = harness.run(model, x)
    for t in (0, rng.randrange(1, 8), rng.randrange(8, length - 2), length - 2):
        (found,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        assert found[:, t].any()
        assert not found[:, t + 1 :].any(), f"token {t} depends on later ones"


@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_row_5_later_tokens_change_nothing(case: Case, rng: random.Random) -> None:
    length = rng.choice(harness.lengths(case))
    t = rng.randrange(5, length - 5)
    model = harness.stack([case, case], positions=harness.serving(case))
    x = harness.vectors(2, length)
    want = harness.run(model, x)[:, :t]
    for suffix in (torch.randn_like(x[:, t:]), torch.full_like(x[:, t:], 1e4)):
        harness.close(harness.run(model, torch.cat([x[:, :t], suffix], dim=1))[:, :t], want)


def _tokens(kind: str, batch: int, length: int) -> Tokens:
    pos = torch.arange(length).unsqueeze(0)
    if kind == "padded":
        return Tokens(pos, torch.arange(length) < torch.tensor([length, length - 7, 3])[:batch, None])
    if kind == "documents":
        doc = torch.zeros(batch, length, dtype=torch.int64)
        doc[1:, 13:] = 1
        doc[2:, 17:] = 2
        first = torch.tensor([0, 13, 17])
        return Tokens(torch.arange(length) - first[doc], None, doc)
    return Tokens(pos)


def _reached(case: Case, causal: bool, tokens: Tokens, length: int) -> Tensor:
    """Return whose values have a gradient at whom, (B, T, T): through the values of a mechanism, or all of a mixer."""
    # Wide heads: features that are 0 where x is negative would not meet in narrow ones.
    width = 120 if harness.is_mechanism(case) else harness.D_MODEL
    layer = harness.sublayer(case, causal=causal, d_model=width)
    context = Context(tokens, causal)
    if isinstance(layer, MultiHeadAttention):
        q = torch.randn(3, length, *layer.heads, dtype=torch.float64)
        k = torch.randn(3, length, *layer.kv_heads, dtype=torch.float64)
        x = torch.randn_like(k).requires_grad_()
        y = layer.mechanism(q, k, x, context)[0]
    else:
        x = harness.vectors(3, length).requires_grad_()
        y = layer(x, context)[0]
    weight = torch.randn(y.shape[2:], dtype=torch.float64)
    rows = [torch.autograd.grad((y[:, t] * weight).sum(), x, retain_graph=True)[0] for t in range(length)]
    return torch.stack([row.flatten(2).abs().amax(-1) > 0 for row in rows], dim=1)


@pytest.mark.parametrize("kind", ["plain", "padded", "documents"])
@pytest.mark.parametrize(("case", "causal"), ATTENTIONS, ids=str)
def test_row_6_the_receptive_field_is_the_declared_one(case: Case, causal: bool, kind: str, rng: random.Random) -> None:
    length = rng.choice((29, 37))
    tokens = _tokens(kind, 3, length)
    found = _reached(case, causal, tokens, length)
    layer = harness.sublayer(case, causal=causal)
    declared = layer.visible(tokens, tokens).expand_as(found)  # type: ignore[operator]
    real = torch.ones(3, length, dtype=torch.bool) if tokens.valid is None else tokens.valid
    assert torch.equal(found & real.unsqueeze(2), declared & real.unsqueeze(2))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("case", "causal"), ATTENTIONS, ids=str)
def test_row_7_padding_changes_nothing(case: Case, causal: bool, side: str, rng: random.Random) -> None:
    length = rng.choice(harness.lengths(case))
    lengths = [length, length - rng.randrange(2, 9), rng.randrange(1, 9), 0]
    model = harness.stack([case, case], positions=harness.serving(case), causal=causal)
    x = harness.vectors(4, length)
    wide, mask = harness.padded(x, side, lengths)
    for poison in (None, float("nan")):
        poisoned = wide if poison is None else wide.masked_fill(mask.unsqueeze(2) == 0, poison)
        poisoned = poisoned.clone().requires_grad_()
        y = harness.run(model, poisoned, attention_mask=mask)
        for row, count in enumerate(lengths):
            harness.close(y[row][mask[row].bool()], harness.run(model, x[row : row + 1, :count])[0])
        assert not y[mask == 0].any()
        found = harness.gradients(y, poisoned, *model.parameters())
        assert not found[0][mask == 0].any(), "a gradient reaches padding"
        assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize(("case", "causal"), [p for p in ATTENTIONS if harness.is_mechanism(p[0])], ids=str)
def test_row_8_a_row_that_sees_nothing_gives_0(case: Case, causal: bool, rng: random.Random) -> None:
    length = rng.choice((3, 29, 67))
    layer = harness.sublayer(case, causal=causal)
    assert isinstance(layer, MultiHeadAttention)
    q = torch.randn(3, length, *layer.heads, dtype=torch.float64, requires_grad=True)
    k = torch.randn(3, length, *layer.kv_heads, dtype=torch.float64, requires_grad=True)
    valid = torch.arange(length) < torch.tensor([[length], [0], [2]])
    context = harness.context(q, causal=causal, valid=valid)
    silent = k * valid[:, :, None, None]
    y = layer.mechanism(q, silent, silent, context)[0]
    assert not y[1].any()
    assert y[0].flatten(1).any(1).all()
    assert all(g.isfinite().all() for g in harness.gradients(y, q, k))


@pytest.mark.parametrize("case", harness.able("cross"), ids=str)
def test_row_8_an_empty_memory_gives_0(case: Case) -> None:
    layer = harness.sublayer(case, causal=False, cross=True)
    assert isinstance(layer, MultiHeadAttention)
    x, memory = harness.vectors(2, 7), harness.vectors(2, 5)
    mask = torch.tensor([[True] * 5, [False] * 5])
    for read, valid in ((memory, mask), (memory[:, :0], None), (memory[:, :0], mask[:, :0])):
        pos = torch.arange(read.shape[1]).unsqueeze(0)
        context = harness.context(x, causal=False, memory=read, memory_tokens=Tokens(pos, valid))
        q = layer.q(x).unflatten(-1, layer.heads)
        mixed = layer.mechanism.recall(q, layer.prime(context), context)
        assert not mixed[1].any()
        assert mixed.isfinite().all()


@pytest.mark.parametrize(("case", "causal"), harness.directed(harness.able("documents")), ids=str)
def test_row_12_packed_documents_equal_separate_ones(case: Case, causal: bool, rng: random.Random) -> None:
    length = rng.choice(harness.lengths(case)[1:])
    model = harness.stack([case, case], positions=harness.serving(case), causal=causal)
    x, doc = harness.vectors(4, length).requires_grad_(), harness.documents(4, length)
    mask = torch.ones(4, length, dtype=torch.int64)
    mask[2, length - 6 :] = 0
    mask[3, ::7] = 0
    for given in ({}, {"attention_mask": mask}):
        real = given.get("attention_mask", torch.ones_like(doc)).bool()
        y = harness.run(model, x, document_ids=doc, **given)
        parts = torch.zeros_like(y)
        for row in range(4):
            for which in doc[row].unique():
                here = (doc[row] == which) & real[row]
                parts[row, here] = harness.run(model, x[row : row + 1, here])[0]
        harness.close(y, parts)
        harness.close(harness.gradients(y, x)[0], harness.gradients(parts, x)[0], what="gradient")


@pytest.mark.parametrize("case", harness.able("two_sided"), ids=str)
def test_row_16_without_positions_order_is_known_to_those_that_declare_it(case: Case, rng: random.Random) -> None:
    length = rng.choice((11, 23))
    layer = harness.sublayer(case, causal=False)
    x, turn = harness.vectors(2, length), torch.randperm(length)
    context = harness.context(x, causal=False)
    y = layer(x, context)[0]
    same = harness.error(layer(x[:, turn], context)[0], y[:, turn]) <= 1e-10
    field = layer.visible(context.tokens, context.tokens)[0].clone()  # type: ignore[operator]
    unmixed = not field.fill_diagonal_(False).any()
    orderless = torch.equal(field, field[turn][:, turn]) and "rotate" not in case.cls.declares.ignores
    assert same == (unmixed or orderless)


@pytest.mark.parametrize(
    ("case", "chosen"), [(case, chosen) for case, chosen, causal in harness.pairs() if not causal], ids=str
)
def test_row_16_with_positions_order_matters(case: Case, chosen: Case, rng: random.Random) -> None:
    length = rng.choice((11, 23))
    model = harness.stack([case], positions=[chosen], causal=False)
    x, turn = harness.vectors(2, length), torch.randperm(length)
    assert harness.error(harness.run(model, x[:, turn]), harness.run(model, x)[:, turn]) > 1e-3


@pytest.mark.parametrize("case", harness.able("cross"), ids=str)
def test_rows_7_and_16_a_memory_has_neither_order_nor_padding(case: Case, rng: random.Random) -> None:
    model = harness.stack(harness.bases("attention")[:1], cross=case)
    x, memory = harness.vectors(3, 5), harness.vectors(3, 17)
    turn = torch.randperm(17)
    want = harness.run(model, x, memory=memory)
    harness.close(harness.run(model, x, memory=memory[:, turn]), want)
    lengths = [17, rng.randrange(2, 9), 1]
    for side in SIDES:
        wide, mask = harness.padded(memory, side, lengths)
        for poison in (0.5, float("nan")):
            poisoned = wide.masked_fill(mask.unsqueeze(2) == 0, poison)
            y = harness.run(model, x, memory=poisoned, memory_mask=mask)
            for row, count in enumerate(lengths):
                alone = harness.run(model, x[row : row + 1], memory=memory[row : row + 1, :count])
                harness.close(y[row : row + 1], alone)
