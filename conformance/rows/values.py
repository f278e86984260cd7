"""Rows 1 to 3, 9, 14 and 15: what is computed, whatever the tensors look like."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ...core.choice import Choices
from ...core.heads import MultiHeadAttention
from ...core.initialise import unallocated
from ...core.stack import Stack
from ...core.tokens import Tokens
from ..cases import D_MODEL, NARROW, Case, cases_of, with_option
from ..companions import bases, serving
from ..places import (
    base_directed,
    causal,
    directed,
    hooks,
    mechanism,
    once,
    only,
    pair,
    paired,
    unless_mechanism,
)
from ..registered import row, unless_able
from ..stacks import by_reference, cast_all, context, documents, lengths, run, scores, stack, step, sublayer, vectors
from ..subjects import Subject, floats
from ..trial import TOLERANCE, Trial, error, gradients

COMPUTING = ("attention", "position", "norm", "feedforward", "embedding", "head")
REFERRED = tuple(kind for kind in COMPUTING if kind != "position")  # whose contract has a reference


@row(1, "shape, dtype and device in four dtypes and on the meta device", kinds=COMPUTING)
@torch.no_grad()
def shape_dtype_and_device(subject: Subject, trial: Trial) -> None:
    inputs = subject.inputs(trial.size("batch", (2, 3)), trial.size("length", (7, 37)))
    want = subject.call(subject.build(), *inputs)
    trial.holds(subject.fits(want, *inputs), "the output has not the declared shape", want.shape)
    for dtype in TOLERANCE:
        made = Choices()
        y = subject.call(subject.build(dtype), *cast_all(inputs, dtype), choices=made)
        if made.chosen:
            taken = Choices(made.chosen)
            want = subject.call(subject.build(), *inputs, choices=taken)
            trial.alike(made, taken, dtype)
        wide = torch.promote_types(dtype, torch.float32) if subject.hook == "score" else dtype  # scores are summed wide
        trial.holds(y.dtype in (dtype, wide), f"in {dtype} the output is {y.dtype}")
        trial.holds(y.shape == want.shape, f"the output in {dtype} has another shape", y.shape)
        off, allowed = error(y, want), TOLERANCE[dtype]
        if off > allowed and subject.kind in REFERRED:
            # What a norm divides by may be small where terms cancel: the reference then errs as far.
            slow = subject.call(
                subject.build(dtype), *cast_all(inputs, dtype), reference=True, choices=Choices(made.chosen)
            )
            allowed = max(allowed, 2 * error(slow, want))
        trial.within(off, allowed, f"the output in {dtype} differs, relative to the largest value", y.shape)
    with unallocated():
        elsewhere = subject.raw()
    # Nothing may be made on the CPU on the way: on the meta device that fails.
    y = subject.call(elsewhere, *(x.to("meta") for x in cast_all(inputs, torch.float32)))
    trial.holds(y.is_meta and y.shape == want.shape, "the output on the meta device is not there", y.shape)


@row(2, "values and gradients of the reference, alone", kinds=REFERRED)
def the_reference(subject: Subject, trial: Trial) -> None:
    module = subject.build()
    inputs = subject.inputs(trial.size("batch", (3,)), trial.size("length", (7, 37, 71)))
    wanted = floats(module, inputs)
    made = Choices()
    fast = subject.call(module, *inputs, choices=made)
    taken = Choices(made.chosen)
    slow = subject.call(module, *inputs, reference=True, choices=taken)
    trial.alike(made, taken)
    trial.close(fast, slow)
    trial.all_close(gradients(fast, *wanted), gradients(slow, *wanted))


def situations(batch: int, length: int) -> dict[str, dict[str, Tensor]]:
    """Return what a stack may be told besides its inputs: padding, documents, both."""
    mask = (torch.rand(batch, length) < 0.7).long()
    mask[1:2] = 0
    doc = documents(batch, length)
    return {
        "plain": {},
        "padded": {"attention_mask": mask},
        "with documents": {"document_ids": doc},
        "padded, with documents": {"document_ids": doc, "attention_mask": mask},
    }


def _both(trial: Trial, model: Stack, slow: Stack, x: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """Return what two stacks give, of which the second chooses as the first does."""
    made = Choices()
    got = run(model, x, choices=made, **given)
    taken = Choices(made.chosen)
    want = run(slow, x, choices=taken, **given)
    trial.alike(made, taken)
    return got, want


@row(2, "values and gradients of the reference, in a stack", kinds=("attention",), places=directed)
def the_reference_in_a_stack(subject: Subject, trial: Trial) -> None:
    case = subject.case
    batch, length = trial.size("batch", (3,)), trial.size("length", lengths(case), least=2)
    model, slow = (stack([case, case], positions=serving(case), causal=subject.causal) for _ in range(2))
    by_reference(slow)
    x = vectors(batch, length).requires_grad_()
    for name, given in situations(batch, length).items():
        if "document_ids" in given and "documents" not in case.cls.declares.can:
            continue
        got, want = _both(trial, model, slow, x, **given)
        trial.close(got, want, what=f"the result, {name},")
        found = gradients(got, x, *model.parameters())
        trial.all_close(found, gradients(want, x, *slow.parameters()), f"a gradient, {name},")


@row(2, "the reference with each position", kinds=("attention", "position"), places=paired)
def the_reference_with_positions(subject: Subject, trial: Trial) -> None:
    case, chosen = pair(subject)
    batch, length = trial.size("batch", (3,)), trial.size("length", lengths(case)[:2], least=2)
    model, slow = (stack([case], positions=[chosen], causal=subject.causal) for _ in range(2))
    by_reference(slow)
    x = vectors(batch, length).requires_grad_()
    for name, given in situations(batch, length).items():
        if "document_ids" in given and "documents" not in case.cls.declares.can:
            continue
        got, want = _both(trial, model, slow, x, **given)
        trial.close(got, want, what=f"the result, {name},")
        trial.close(gradients(got, x)[0], gradients(want, x)[0], what=f"the gradient, {name},")


@row(2, "the reference after a state", kinds=("attention",), places=causal, excuse=unless_able("causal"))
@torch.no_grad()
def the_reference_after_a_state(subject: Subject, trial: Trial) -> None:
    case, batch = subject.case, trial.size("batch", (3,))
    model, slow = (stack([case], positions=serving(case)) for _ in range(2))
    by_reference(slow)
    states = [model.empty_state(batch), slow.empty_state(batch)]
    for length in (trial.size("length", (23,)), 1, trial.choice((2, 41)), 3):
        x, mask = vectors(batch, length), (torch.rand(batch, length) < 0.8).long()
        made = Choices()
        fast, states[0] = step(model, x, states[0], attention_mask=mask, choices=made)
        taken = Choices(made.chosen)
        want, states[1] = step(slow, x, states[1], attention_mask=mask, choices=taken)
        trial.alike(made, taken)
        trial.close(fast, want)
        for name, tensor in states[1].tensors.items():
            trial.close(states[0].tensors[name], tensor, what=f"the state's {name.rpartition('.')[2]}")


@row(3, "gradcheck of inputs and weights", kinds=COMPUTING)
def gradcheck(subject: Subject, trial: Trial) -> None:
    width = D_MODEL if subject.kind in ("embedding", "head", "position") else NARROW
    batch, length = trial.size("batch", (2,)), trial.size("length", (17,))
    module, inputs = subject.build(d_model=width), subject.inputs(batch, length, width)
    wanted = [x for x in floats(module, inputs) if x.numel() > 0]
    made = Choices()
    subject.call(module, *inputs, choices=made)

    def compute(*_: Tensor) -> Tensor:
        return subject.call(module, *inputs, choices=Choices(made.chosen))  # a choice jumps: its gradient is 0

    if any(x.requires_grad for x in wanted):
        right = torch.autograd.gradcheck(
            compute, wanted, eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True, raise_exception=False
        )
        trial.holds(right, "a gradient is not the limit of differences")


@row(9, "a row alone equals it among seven", kinds=COMPUTING)
@torch.no_grad()
def a_row_alone(subject: Subject, trial: Trial) -> None:
    batch, length = trial.size("batch", (7,), least=2), trial.size("length", (11, 37))
    module, inputs = subject.build(), subject.inputs(batch, length)
    y, place = subject.call(module, *inputs), trial.place(0, batch)
    batched = y.shape[0] == batch
    if batched:
        alone = subject.call(module, *(x[place : place + 1] for x in inputs))
        trial.close(alone, y[place : place + 1], what="a row alone")
    none = subject.call(module, *(x[:0] for x in inputs))
    trial.holds(none.shape == (0 if batched else y.shape[0], *y.shape[1:]), "no rows give another shape", none.shape)


@row(14, "strided, transposed, expanded and shared inputs", kinds=COMPUTING)
def any_layout(subject: Subject, trial: Trial) -> None:
    batch, length = trial.size("batch", (3,), least=2), trial.size("length", (11, 37), least=2)
    module, inputs = subject.build(), subject.inputs(batch, length)
    want, copies = subject.call(module, *inputs), [x.clone() for x in inputs]
    strided = tuple(torch.stack([x, torch.zeros_like(x)], dim=-1)[..., 0] for x in inputs)
    turned = tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs)
    trial.close(subject.call(module, *strided), want, what="the result of strided inputs")
    trial.close(subject.call(module, *turned), want, what="the result of transposed inputs")
    expanded = tuple(x[:1].expand(batch, *x.shape[1:]) for x in inputs)
    whole = subject.call(module, *(x.contiguous() for x in expanded))
    trial.close(subject.call(module, *expanded), whole, what="the result of expanded inputs")
    if subject.cross:
        same = (inputs[0], inputs[0])
        apart = subject.call(module, *(x.clone() for x in same))
        trial.close(subject.call(module, *same), apart, what="the result of inputs that are its memory too")
    for x, copy in zip(inputs, copies, strict=True):
        trial.equal(x, copy, "an input, once it was used,")


@row(14, "one tensor as q, k and v", kinds=("attention",), places=partial(only, mechanism, directed),
     excuse=unless_mechanism)  # fmt: skip
@torch.no_grad()
def one_tensor_as_q_k_and_v(subject: Subject, trial: Trial) -> None:
    layer = sublayer(subject.case, causal=subject.causal)
    assert isinstance(layer, MultiHeadAttention)
    x = torch.randn(trial.size("batch", (2,)), trial.size("length", (37,)), *layer.kv_heads, dtype=torch.float64)
    groups = layer.heads[0] // layer.kv_heads[0]
    q = x if groups == 1 else x.repeat_interleave(groups, dim=2)
    copy, here = x.clone(), context(x, causal=subject.causal)
    y = layer.mechanism(q, x, x, here)[0]
    trial.equal(x, copy, "an input, once it was used,")
    trial.close(y, layer.mechanism(q.clone(), x.clone(), x.clone(), here)[0], what="the result of shared inputs")


@row(15, "ten reruns are bit-equal and draw no random number", kinds=COMPUTING)
def reruns(subject: Subject, trial: Trial) -> None:
    batch, length = trial.size("batch", (2,)), trial.size("length", (37,))
    module, inputs = subject.build(torch.float32), cast_all(subject.inputs(batch, length), torch.float32)
    before = torch.get_rng_state()
    for training in (False, True):
        module.train(training)
        first = subject.call(module, *inputs)
        for _ in range(9):
            trial.equal(subject.call(module, *inputs), first, "a rerun")
    trial.equal(torch.get_rng_state(), before, "a random number was drawn: the generator's state")


@row(15, "dropout follows its seed", kinds=("attention", "feedforward", "norm"), places=once)
def dropout(subject: Subject, trial: Trial) -> None:
    chosen = {kind: bases(kind)[0] for kind in ("attention", "feedforward", "norm")} | {subject.kind: subject.case}
    sides = chosen["attention"].cls.declares.can
    given: dict[str, Any] = {
        "feedforward": chosen["feedforward"], "norm": chosen["norm"], "causal": "causal" in sides,
    }  # fmt: skip
    model = stack([chosen["attention"]], dropout=0.3, **given)
    x = vectors(trial.size("batch", (2,)), trial.size("length", (11,)))
    plain = run(stack([chosen["attention"]], **given), x)
    trial.equal(run(model, x), plain, "the result of a model with dropout that is not in training")
    model.train()
    torch.manual_seed(1)
    first = run(model, x)
    torch.manual_seed(1)
    trial.equal(run(model, x), first, "dropout from the same seed")
    trial.holds(not torch.equal(run(model, x), first), "dropout is the same again without its seed")
    trial.holds(not torch.equal(first, plain), "dropout changes nothing in training")


def _has_others(subject: Subject) -> bool:
    return len(cases_of(subject.case.cls)) > 1


@row(2, "beside one of other options", kinds=("attention",), places=partial(only, _has_others, base_directed),
     profile="full", excuse=lambda cls: "it has one choice of options alone")  # fmt: skip
@torch.no_grad()
def beside_another(subject: Subject, trial: Trial) -> None:
    # What a pass makes once for all layers, under a name, is not another layer's of other options.
    case = subject.case
    x = vectors(trial.size("batch", (2,)), trial.size("length", (37,)))
    for other in cases_of(case.cls)[1:]:
        model, slow = (stack([case, other], causal=subject.causal) for _ in range(2))
        trial.close(run(model, x), run(by_reference(slow), x), what="the result of a layer behind one of other options")


@row(2, "a position beside one of other options", kinds=("position",), places=hooks)
@torch.no_grad()
def positions_in_a_pass(subject: Subject, trial: Trial) -> None:
    inputs = subject.inputs(trial.size("batch", (2,)), trial.size("length", (11,)))
    together, column = Tokens(torch.arange(inputs[0].shape[1]).unsqueeze(0)), inputs[0].shape[1]

    def given(case: Case, tokens: Tokens) -> Tensor:
        module: Any = subject.of(case).build()
        if subject.hook == "score":
            return scores(module, tokens, tokens, *inputs)
        found: Tensor = getattr(module, subject.hook)(*inputs, tokens)
        return found

    for other in cases_of(subject.case.cls):
        given(subject.case, together)
        want = given(other, Tokens(torch.arange(column).unsqueeze(0)))
        trial.close(given(other, together), want, what="what it does behind one of other options")


@row(2, "`scale` scales the scores", kinds=("attention",), places=partial(only, mechanism, base_directed),
     excuse=unless_mechanism)  # fmt: skip
@torch.no_grad()
def the_scale(subject: Subject, trial: Trial) -> None:
    case = subject.case
    one, two = (
        cast(MultiHeadAttention, sublayer(with_option(case, "scale", scale), causal=subject.causal)).mechanism
        for scale in (0.3, 0.6)
    )
    batch, length = trial.size("batch", (2,)), trial.size("length", (23,), least=2)
    q = torch.randn(batch, length, one.n_heads, one.head_dim, dtype=torch.float64)
    k, v = (torch.randn(batch, length, one.n_kv_heads, one.head_dim, dtype=torch.float64) for _ in range(2))
    here = context(vectors(batch, length), causal=subject.causal)
    # Queries may also choose: twice as long they would look elsewhere.
    q_too, k_too = (q, 2 * k) if case.cls.chooses else (2 * q, k)
    trial.close(two(q, k, v, here)[0], one(q_too, k_too, v, here)[0], what="twice the scale, against twice as much")
