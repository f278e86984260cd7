"""Rows 4 to 8, 12 and 16: who reaches whom, whatever stands elsewhere in the row."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.choice import Choices
from ...core.context import Context
from ...core.heads import MultiHeadAttention
from ...core.memory import Memory
from ...core.tokens import ORDER, Permuted, Tokens
from ..cases import D_MODEL, Case
from ..companions import decoding, is_mechanism, serving
from ..places import (
    causal,
    crossing,
    directed,
    mechanism,
    once,
    only,
    pair,
    two_sided,
    two_sided_pairs,
    unless_mechanism,
)
from ..registered import row, unless_able
from ..stacks import across, by_reference, context, documents, lengths, padded, run, stack, sublayer, vectors
from ..subjects import Subject
from ..trial import Trial, error, gradients

TRIES = 2
"""How often other numbers are drawn where a token that should be reached was not."""
SIDES = ("left", "right", "inner")
SITUATIONS = {"plain": "", "padded": "", "with documents": "documents", "in an order of their own": "pairs"}
"""What tokens may be like -> the ability that an attention needs for them."""


@row(4, "the gradient by later tokens is 0", kinds=("attention",), places=causal, excuse=unless_able("causal"))
def no_gradient_from_later_tokens(subject: Subject, trial: Trial) -> None:
    case = subject.case
    length = trial.size("length", lengths(case), least=2)
    model = stack([case, case], positions=serving(case))
    x = vectors(trial.size("batch", (2,)), length).requires_grad_()
    y = run(model, x)
    for t in (0, trial.place(1, min(8, length - 1)), trial.place(min(8, length - 2), length - 2), length - 2):
        (found,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        trial.holds(found[:, t].any(), "a token does not depend on itself")
        trial.holds(not found[:, t + 1 :].any(), "a token depends on later ones")


@row(5, "later tokens may be others, or 1e4", kinds=("attention",), places=causal, excuse=unless_able("causal"))
def later_tokens(subject: Subject, trial: Trial) -> None:
    case = subject.case
    length = trial.size("length", lengths(case), least=2)
    t = trial.place(min(5, length - 1), length - 5)
    model = stack([case, case], positions=serving(case))
    x = vectors(trial.size("batch", (2,)), length)
    before = Choices()
    want = run(model, x, choices=before)[:, :t]
    for suffix in (torch.randn_like(x[:, t:]), torch.full_like(x[:, t:], 1e4)):
        made = Choices()
        got = run(model, torch.cat([x[:, :t], suffix], dim=1), choices=made)[:, :t]
        first, second = ([each[:, :t] for each in found.chosen] for found in (made, before))
        trial.same_choices(first, second, "what is chosen before changed tokens")
        trial.close(got, want, what="what comes before changed tokens")


def _tokens(situation: str, batch: int, length: int) -> Tokens:
    column = torch.arange(length)
    if situation == "padded":
        return Tokens(column.unsqueeze(0), column < torch.tensor([[length], [max(length - 7, 0)], [3]])[:batch])
    if situation == "with documents":
        first = torch.tensor([[length, length], [length * 2 // 5, length], [length * 2 // 5, length // 2]])[:batch]
        doc = (column >= first[:, :1]).long() + (column >= first[:, 1:]).long()
        start = torch.cat([torch.zeros(batch, 1, dtype=torch.int64), first], dim=1).gather(1, doc)
        return Tokens(column - start, None, doc)
    if situation == "in an order of their own":
        order = torch.stack([torch.randperm(length) // 3 for _ in range(batch)])
        return Tokens(column.unsqueeze(0), marks={ORDER: order})
    return Tokens(column.unsqueeze(0))


def _reached(case: Case, causal: bool, tokens: Tokens, batch: int, length: int) -> tuple[Tensor, list[Tensor]]:
    """Return whose values have a gradient at whom, (B, T, T): through the values of a mechanism, or all of a mixer.

    And what was chosen by content.
    """
    # Wide heads: features that are 0 where x is negative would not meet in narrow ones.
    width = 120 if is_mechanism(case) else D_MODEL
    layer = sublayer(case, causal=causal, d_model=width)
    made = Choices()
    here = Context(tokens, causal, choices=made)
    if isinstance(layer, MultiHeadAttention):
        q = torch.randn(batch, length, *layer.heads, dtype=torch.float64)
        k = torch.randn(batch, length, *layer.kv_heads, dtype=torch.float64)
        x = torch.randn_like(k).requires_grad_()
        y = layer.mechanism(q, k, x, here)[0]
    else:
        x = vectors(batch, length).requires_grad_()
        y = layer(x, here)[0]
    weight = torch.randn(y.shape[2:], dtype=torch.float64)
    rows = [torch.autograd.grad((y[:, t] * weight).sum(), x, retain_graph=True)[0] for t in range(length)]
    return torch.stack([found.flatten(2).abs().amax(-1) > 0 for found in rows], dim=1), made.chosen


def _field(layer: Any, tokens: Tokens, chosen: list[Tensor]) -> Tensor:
    """Return the declared field, of an attention that chooses for what it chose."""
    field: Tensor = layer.shown(tokens, tokens, chosen[0]) if chosen else layer.visible(tokens, tokens)
    return field


@row(6, "`visible` is the set of nonzero gradients", kinds=("attention",), places=directed)
def the_receptive_field(subject: Subject, trial: Trial) -> None:
    batch, length = trial.size("batch", (3,)), trial.size("length", (29, 37), least=2)
    layer = sublayer(subject.case, causal=subject.causal)
    can = subject.case.cls.declares.can
    for situation, needed in SITUATIONS.items():
        if needed and needed not in can:
            continue
        tokens = _tokens(situation, batch, length)
        found, chosen = _reached(subject.case, subject.causal, tokens, batch, length)
        declared = _field(layer, tokens, chosen).expand_as(found)
        real = torch.ones(batch, length, 1, dtype=torch.bool) if tokens.valid is None else tokens.valid.unsqueeze(2)
        for _ in range(TRIES):
            # A ReLU may shut every feature by which a token would be read: with other numbers another's.
            if not chosen and (declared & real & ~found).any():
                found = found | _reached(subject.case, subject.causal, tokens, batch, length)[0]
        wrong = f"the field that is declared, {situation}, is not the one that has a gradient"
        trial.holds(torch.equal(found & real, declared & real), wrong, found.shape)
        outside = declared & real & ~layer.visible(tokens, tokens)  # type: ignore[operator]
        trial.holds(not outside.any(), "what is chosen is not among what `visible` gives to choose from")


@row(7, "padding on any side, random or NaN", kinds=("attention",), places=directed)
def padding(subject: Subject, trial: Trial) -> None:
    case, causal = subject.case, subject.causal
    batch, length = trial.size("batch", (4,)), trial.size("length", lengths(case), least=2)
    counts = [length, length - trial.place(1, min(9, length)), trial.place(1, min(9, length)), 0][:batch]
    model = stack([case, case], positions=serving(case), causal=causal)
    x = vectors(batch, length)
    alone = [run(model, x[b : b + 1, :count])[0] for b, count in enumerate(counts)]
    for side in SIDES:
        wide, mask = padded(x, side, counts)
        for poison in (None, float("nan")):
            poisoned = wide if poison is None else wide.masked_fill(mask.unsqueeze(2) == 0, poison)
            poisoned = poisoned.clone().requires_grad_()
            y = run(model, poisoned, attention_mask=mask)
            for b, want in enumerate(alone):
                trial.close(y[b][mask[b].bool()], want, what=f"a row padded ({side})")
            trial.holds(not y[mask == 0].any(), f"padding ({side}) does not give 0")
            found = gradients(y, poisoned, *model.parameters())
            trial.holds(not found[0][mask == 0].any(), f"a gradient reaches padding ({side})")
            trial.finite(*found, what=f"a gradient beside padding ({side})")


@row(8, "a row that sees nothing gives 0", kinds=("attention",), places=partial(only, mechanism, directed),
     excuse=unless_mechanism)  # fmt: skip
def a_row_that_sees_nothing(subject: Subject, trial: Trial) -> None:
    length = trial.size("length", (3, 29, 67))
    layer = sublayer(subject.case, causal=subject.causal)
    assert isinstance(layer, MultiHeadAttention)
    q = torch.randn(3, length, *layer.heads, dtype=torch.float64, requires_grad=True)
    k = torch.randn(3, length, *layer.kv_heads, dtype=torch.float64, requires_grad=True)
    valid = torch.arange(length) < torch.tensor([[length], [0], [2]])
    here = context(q, causal=subject.causal, valid=valid)
    silent = k * valid[:, :, None, None]
    y = layer.mechanism(q, silent, silent, here)[0]
    trial.holds(not y[1].any(), "a row without real tokens does not give 0")
    trial.holds(y[0].flatten(1).any(1).all(), "a real token gives 0")
    trial.finite(*gradients(y, q, k), what="a gradient")


@row(8, "an empty memory gives 0", kinds=("attention",), places=crossing, excuse=unless_able("cross"))
def an_empty_memory(subject: Subject, trial: Trial) -> None:
    layer = sublayer(subject.case, causal=False, cross=True)
    trial.holds(isinstance(layer, MultiHeadAttention), "only a mechanism can read a memory")
    assert isinstance(layer, MultiHeadAttention)
    x, memory = vectors(2, trial.size("length", (7,))), vectors(2, 5)
    mask = torch.tensor([[True] * 5, [False] * 5])
    for read, valid in ((memory, mask), (memory[:, :0], None), (memory[:, :0], mask[:, :0])):
        here = across(x, read, valid)
        q = layer.q.alone(0, x).unflatten(-1, layer.heads)
        mixed = layer.mechanism.recall(q, layer.prime(here), here)
        trial.holds(not mixed[1].any(), "a row whose memory is empty does not give 0")
        trial.finite(mixed)


@row(6, "what is asked for sees what comes before it", kinds=("attention",), excuse=unless_able("pairs", "two_sided"),
     places=partial(only, lambda subject: "pairs" in subject.case.cls.declares.can, two_sided))  # fmt: skip
def what_is_asked_for(subject: Subject, trial: Trial) -> None:
    case, batch, length = subject.case, trial.size("batch", (3,)), trial.size("length", (13, 29), least=5)
    model = stack([case, case], positions=serving(case), causal=False)
    order = torch.stack([torch.randperm(length) + 1 for _ in range(batch)])
    asked = order.argsort(1)[:, -4:]
    x = vectors(batch, length).requires_grad_()
    y = run(model, x, permuted=Permuted(order, asked))
    trial.holds(y.shape == (batch, 4, x.shape[2]), "the result is not that of what is asked for", y.shape)
    trial.close(
        by_reference(model)({"x": x}, permuted=Permuted(order, asked))[0], y, what="the result by the reference"
    )
    for place in range(4):
        (found,) = torch.autograd.grad(y[:, place].square().sum(), x, retain_graph=True)
        before = order < order.gather(1, asked[:, place : place + 1])
        reached = found.abs().amax(-1) > 0
        trial.holds(torch.equal(reached, before), "what is asked for is not reached by all that comes before, alone")
    # Each on its own: the same text without what comes later, the token itself in sight of none.
    mask = torch.ones(batch, length + 2, dtype=torch.int64)
    mask[:, 3], mask[:, length + 1] = 0, 0
    wide = torch.randn(batch, length + 2, x.shape[2], dtype=x.dtype).masked_scatter(mask.bool().unsqueeze(2), x)
    later = torch.zeros_like(mask).masked_scatter(mask.bool(), order)
    columns = mask.cumsum(1).mul(mask).unsqueeze(1).eq(asked.unsqueeze(2) + 1).long().argmax(2)
    trial.close(
        run(model, wide, attention_mask=mask, permuted=Permuted(later, columns)), y, what="the result beside padding"
    )


def _keeps_documents(subject: Subject) -> bool:
    return "documents" in subject.case.cls.declares.can


@row(12, "packed documents equal separate ones", kinds=("attention",),
     places=partial(only, _keeps_documents, directed), excuse=unless_able("documents"))  # fmt: skip
def packed_documents(subject: Subject, trial: Trial) -> None:
    case, causal = subject.case, subject.causal
    batch, length = trial.size("batch", (4,), least=2), trial.size("length", lengths(case)[1:], least=2)
    model = stack([case, case], positions=serving(case), causal=causal)
    x, doc = vectors(batch, length).requires_grad_(), documents(batch, length)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[2:3, max(length - 6, 1) :] = 0
    mask[3:4, ::7] = 0
    for given in ({}, {"attention_mask": mask}):
        real = given.get("attention_mask", torch.ones_like(doc)).bool()
        y = run(model, x, document_ids=doc, **given)
        parts = torch.zeros_like(y)
        for b in range(batch):
            for which in doc[b].unique():
                here = (doc[b] == which) & real[b]
                parts[b, here] = run(model, x[b : b + 1, here])[0]
        trial.close(y, parts)
        trial.close(gradients(y, x)[0], gradients(parts, x)[0], what="the gradient")


def _goes_by_positions(subject: Subject) -> bool:
    return not subject.case.cls.chooses


def _chooses(cls: type[Any]) -> str:
    why = unless_able("two_sided")(cls)
    return why or f"chooses: {cls.chooses}, of places or of tokens"


@row(16, "without positions", kinds=("attention",), places=partial(only, _goes_by_positions, two_sided),
     excuse=_chooses)  # fmt: skip
def order_without_positions(subject: Subject, trial: Trial) -> None:
    case, length = subject.case, trial.size("length", (11, 23), least=3)
    layer = sublayer(case, causal=False)
    x, turn = vectors(trial.size("batch", (2,)), length), torch.randperm(length)
    here = context(x, causal=False)
    y = layer(x, here)[0]
    same = error(layer(x[:, turn], here)[0], y[:, turn]) <= 1e-10
    field = layer.visible(here.tokens, here.tokens)[0].clone()  # type: ignore[operator]
    unmixed = not field.fill_diagonal_(False).any()
    orderless = torch.equal(field, field[turn][:, turn]) and "rotate" not in case.cls.declares.ignores
    known = "unknown, against what it declares" if same else "known, and neither `visible` nor `ignores` says so"
    trial.holds(same == (unmixed or orderless), f"without positions the order is {known}")


@row(16, "with any position", kinds=("attention", "position"), places=two_sided_pairs)
def order_with_positions(subject: Subject, trial: Trial) -> None:
    (case, chosen), length = pair(subject), trial.size("length", (11, 23), least=3)
    model = stack([case], positions=[chosen], causal=False)
    x, turn = vectors(trial.size("batch", (2,)), length), torch.randperm(length)
    trial.apart(run(model, x[:, turn]), run(model, x)[:, turn], "with positions the order is unknown")


@row(7, "a memory has neither order nor padding", kinds=("attention",), places=crossing, excuse=unless_able("cross"))
def a_memory_s_order_and_padding(subject: Subject, trial: Trial) -> None:
    length, batch = trial.size("memory", (17,), least=10), trial.size("batch", (3,))
    model = stack(decoding()[:1], cross=subject.case)
    x, memory = vectors(batch, 5), vectors(batch, length)
    turn = torch.randperm(length)
    want = run(model, x, memory=Memory(memory))
    trial.close(run(model, x, memory=Memory(memory[:, turn])), want, what="the result of a memory in another order")
    counts = [length, trial.place(2, 9), 1][:batch]
    for side in SIDES:
        wide, mask = padded(memory, side, counts)
        for poison in (0.5, float("nan")):
            poisoned = wide.masked_fill(mask.unsqueeze(2) == 0, poison)
            y = run(model, x, memory=Memory(poisoned, mask))
            for b, count in enumerate(counts):
                alone = run(model, x[b : b + 1], memory=Memory(memory[b : b + 1, :count]))
                trial.close(y[b : b + 1], alone, what=f"the result of a memory padded ({side})")


@row(6, "attention weights, where it shows them", kinds=("attention",), places=directed)
@torch.no_grad()
def attention_weights(subject: Subject, trial: Trial) -> None:
    batch, length = trial.size("batch", (2,)), trial.size("length", (23,))
    model = stack([subject.case], positions=serving(subject.case), causal=subject.causal)
    x, shown = vectors(batch, length), list[Tensor]()
    y = run(model, x, weights=shown)
    trial.close(y, run(model, x), what="the result when weights are asked for")
    trial.holds(len(shown) <= 1, "one layer shows several weights")
    for weights in shown:
        sizes = (weights.shape[0], *weights.shape[2:])
        trial.holds(sizes == (batch, length, length), "weights are not of (B, H, T, S)", weights.shape)
        layer, tokens = sublayer(subject.case, causal=subject.causal), context(x).tokens
        seen = layer.visible(tokens, tokens).unsqueeze(1)  # type: ignore[operator]
        trial.holds(not weights.masked_select(~seen.expand_as(weights)).any(), "what is not visible has a weight")


def _reads_tokens(subject: Subject) -> bool:
    return bool(subject.case.cls.maskable)


@row(5, "an embedding reads each token on its own", kinds=("embedding",), places=partial(only, _reads_tokens, once),
     excuse=lambda cls: "" if cls.maskable else "maskable: its inputs are no tokens in a row")  # fmt: skip
@torch.no_grad()
def later_columns(subject: Subject, trial: Trial) -> None:
    inputs = subject.inputs(trial.size("batch", (2,)), trial.size("length", (29,), least=2))
    module, t = subject.build(), trial.place(1, inputs[0].shape[1])
    want = subject.call(module, *inputs)[:, :t]
    trial.close(subject.call(module, *(x[:, :t] for x in inputs)), want, what="what comes before left-out tokens")
