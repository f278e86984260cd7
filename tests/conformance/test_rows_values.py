"""Rows 1 to 3, 9, 14, 15 and 22: what is computed, in every dtype, whatever the tensors look like."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from transom.core.heads import MultiHeadAttention

from . import harness
from .harness import TOLERANCE, Case
from .subjects import Subject, floats, subjects, with_reference

EVERY = subjects()
DTYPES = list(TOLERANCE)
HALVES = [torch.float16, torch.bfloat16]


def _cast(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


@torch.no_grad()
@pytest.mark.parametrize("subject", EVERY, ids=str)
def test_row_1_shape_dtype_and_device(subject: Subject, rng: random.Random) -> None:
    inputs = subject.inputs(rng.choice((2, 3)), rng.choice((7, 37)))
    want = subject.call(subject.build(), *inputs)
    assert tuple(want.shape) == subject.shape(*inputs)
    for dtype in DTYPES:
        y = subject.call(subject.build(dtype), *_cast(inputs, dtype))
        wide = torch.promote_types(dtype, torch.float32) if subject.hook == "score" else dtype  # scores are summed wide
        assert y.dtype in (dtype, wide)
        assert y.shape == want.shape
        harness.close(y, want, dtype)
    with torch.device("meta"):
        elsewhere = subject.raw()
    # Nothing may be made on the CPU on the way: on the meta device that fails.
    y = subject.call(elsewhere, *(x.to("meta") for x in _cast(inputs, torch.float32)))
    assert (y.device.type, y.shape) == ("meta", want.shape)


@pytest.mark.parametrize("subject", with_reference(), ids=str)
def test_row_2_equals_the_reference(subject: Subject, rng: random.Random) -> None:
    module, inputs = subject.build(), subject.inputs(3, rng.choice((7, 37, 71)))
    wanted = floats(module, inputs)
    fast, slow = subject.call(module, *inputs), subject.call(module, *inputs, reference=True)
    harness.close(fast, slow)
    for got, want in zip(harness.gradients(fast, *wanted), harness.gradients(slow, *wanted), strict=True):
        harness.close(got, want, what="gradient")


def _situations(length: int) -> dict[str, dict[str, Tensor]]:
    mask = (torch.rand(3, length) < 0.7).long()
    mask[1] = 0
    doc = harness.documents(3, length)
    return {
        "plain": {},
        "padded": {"attention_mask": mask},
        "documents": {"document_ids": doc},
        "both": {"document_ids": doc, "attention_mask": mask},
    }


@pytest.mark.parametrize("situation", ["plain", "padded", "documents", "both"])
@pytest.mark.parametrize(("case", "causal"), harness.directed(harness.cases("attention")), ids=str)
def test_row_2_equals_the_reference_in_a_stack(case: Case, causal: bool, situation: str, rng: random.Random) -> None:
    length = rng.choice(harness.lengths(case))
    model, slow = (harness.stack([case, case], positions=harness.serving(case), causal=causal) for _ in range(2))
    harness.by_reference(slow)
    x = harness.vectors(3, length).requires_grad_()
    given = _situations(length)[situation]
    got, want = harness.run(model, x, **given), harness.run(slow, x, **given)
    harness.close(got, want)
    fast = harness.gradients(got, x, *model.parameters())
    for one, other in zip(fast, harness.gradients(want, x, *slow.parameters()), strict=True):
        harness.close(one, other, what="gradient")


@pytest.mark.parametrize(("case", "chosen", "causal"), harness.pairs(), ids=str)
def test_row_2_equals_the_reference_with_each_position(
    case: Case, chosen: Case, causal: bool, rng: random.Random
) -> None:
    length = rng.choice(harness.lengths(case)[:2])
    model, slow = (harness.stack([case], positions=[chosen], causal=causal) for _ in range(2))
    harness.by_reference(slow)
    x = harness.vectors(3, length).requires_grad_()
    for given in _situations(length).values():
        got, want = harness.run(model, x, **given), harness.run(slow, x, **given)
        harness.close(got, want)
        harness.close(harness.gradients(got, x)[0], harness.gradients(want, x)[0], what="gradient")


@torch.no_grad()
@pytest.mark.parametrize("case", harness.able("causal"), ids=str)
def test_row_2_equals_the_reference_after_a_state(case: Case, rng: random.Random) -> None:
    model, slow = (harness.stack([case], positions=harness.serving(case)) for _ in range(2))
    harness.by_reference(slow)
    states = [model.empty_state(3), slow.empty_state(3)]
    for length in (23, 1, rng.choice((2, 41)), 3):
        x, mask = harness.vectors(3, length), (torch.rand(3, length) < 0.8).long()
        fast, states[0] = harness.step(model, x, states[0], attention_mask=mask)
        want, states[1] = harness.step(slow, x, states[1], attention_mask=mask)
        harness.close(fast, want)
        for name, tensor in states[1].tensors.items():
            harness.close(states[0].tensors[name], tensor, what=name)


@pytest.mark.parametrize("subject", EVERY, ids=str)
def test_row_3_gradcheck(subject: Subject) -> None:
    narrow = {} if subject.kind in ("embedding", "head", "position") else {"d_model": 12}
    module, inputs = subject.build(**narrow), subject.inputs(2, 17, **({"width": 12} if narrow else {}))
    wanted = [x for x in floats(module, inputs) if x.numel() > 0]

    def compute(*_: Tensor) -> Tensor:
        return subject.call(module, *inputs)

    if any(x.requires_grad for x in wanted):
        assert torch.autograd.gradcheck(compute, wanted, eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)


@torch.no_grad()
@pytest.mark.parametrize("subject", EVERY, ids=str)
def test_row_9_a_row_does_not_know_its_batch(subject: Subject, rng: random.Random) -> None:
    module, inputs = subject.build(), subject.inputs(7, rng.choice((11, 37)))
    y, row = subject.call(module, *inputs), rng.randrange(7)
    if y.shape[0] == 7:
        harness.close(subject.call(module, *(x[row : row + 1] for x in inputs)), y[row : row + 1])
    none = subject.call(module, *(x[:0] for x in inputs))
    assert none.shape == (0 if y.shape[0] == 7 else y.shape[0], *y.shape[1:])


@pytest.mark.parametrize("subject", EVERY, ids=str)
def test_row_14_any_layout_and_inputs_left_alone(subject: Subject, rng: random.Random) -> None:
    module, inputs = subject.build(), subject.inputs(3, rng.choice((11, 37)))
    want, copies = subject.call(module, *inputs), [x.clone() for x in inputs]
    strided = tuple(torch.stack([x, torch.zeros_like(x)], dim=-1)[..., 0] for x in inputs)
    turned = tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs)
    for odd in (strided, turned):
        assert not any(x.is_contiguous() for x in odd)
        harness.close(subject.call(module, *odd), want)
    expanded = tuple(x[:1].expand(3, *x.shape[1:]) for x in inputs)
    harness.close(subject.call(module, *expanded), subject.call(module, *(x.contiguous() for x in expanded)))
    if subject.cross:
        same = (inputs[0], inputs[0])
        harness.close(subject.call(module, *same), subject.call(module, *(x.clone() for x in same)))
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True)), "an input was written to"


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "causal"), [p for p in harness.directed(harness.cases("attention")) if harness.is_mechanism(p[0])], ids=str
)
def test_row_14_one_tensor_as_q_k_and_v(case: Case, causal: bool) -> None:
    layer = harness.sublayer(case, causal=causal)
    assert isinstance(layer, MultiHeadAttention)
    x = torch.randn(2, 37, *layer.kv_heads, dtype=torch.float64)
    q = x if layer.heads == layer.kv_heads else x.repeat_interleave(layer.heads[0] // layer.kv_heads[0], dim=2)
    copy, context = x.clone(), harness.context(x, causal=causal)
    y = layer.mechanism(q, x, x, context)[0]
    assert torch.equal(x, copy)
    harness.close(y, layer.mechanism(q.clone(), x.clone(), x.clone(), context)[0])


@pytest.mark.parametrize("subject", EVERY, ids=str)
def test_row_15_reruns_are_bit_equal_and_draw_nothing(subject: Subject) -> None:
    module, inputs = subject.build(torch.float32), _cast(subject.inputs(2, 37), torch.float32)
    before = torch.get_rng_state()
    for training in (False, True):
        module.train(training)
        first = subject.call(module, *inputs)
        assert all(torch.equal(subject.call(module, *inputs), first) for _ in range(9))
    assert torch.equal(torch.get_rng_state(), before), "a random number was drawn"


def test_row_15_dropout_follows_its_seed() -> None:
    given: dict[str, Any] = {"feedforward": harness.bases("feedforward")[0], "norm": harness.bases("norm")[0]}
    attentions = harness.bases("attention")[:2]
    model, x = harness.stack(attentions, dropout=0.3, **given), harness.vectors(2, 11)
    plain = harness.run(harness.stack(attentions, **given), x)
    assert torch.equal(harness.run(model, x), plain)
    model.train()
    torch.manual_seed(1)
    first = harness.run(model, x)
    torch.manual_seed(1)
    assert torch.equal(harness.run(model, x), first)
    assert not torch.equal(harness.run(model, x), first)
    assert not torch.equal(first, plain)


def _off(got: Tensor, want: Tensor) -> float:
    """Return the root mean square of the errors, relative to that of the wanted values."""
    return float((got.double() - want).square().mean().sqrt() / want.square().mean().sqrt())


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("subject", with_reference(), ids=str)
def test_row_22_half_precision_is_as_good_as_the_reference(
    subject: Subject, dtype: torch.dtype, rng: random.Random
) -> None:
    inputs = _cast(_cast(subject.inputs(3, rng.choice((37, 71))), dtype), torch.float64)
    half = subject.build(dtype)
    exact = subject.call(subject.build(dtype).double(), *inputs, reference=True)
    fast = subject.call(half, *_cast(inputs, dtype))
    slow = subject.call(half, *_cast(inputs, dtype), reference=True)
    # Both round the result once: no error below that is the component's.
    assert _off(fast, exact) <= 2 * max(_off(slow, exact), torch.finfo(dtype).eps / 4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("subject", [s for s in EVERY if s.kind != "embedding" and s.hook != "score"], ids=str)
def test_row_22_small_and_large_inputs_stay_finite(subject: Subject, dtype: torch.dtype) -> None:
    inputs, module = subject.inputs(3, 37), subject.build(dtype)
    wide = subject.build(dtype).double()
    for scale in (1e-3, 1e3):
        scaled = _cast(tuple(x * scale for x in inputs), dtype)
        exact = subject.call(wide, *_cast(scaled, torch.float64))
        if exact.abs().max() < torch.finfo(dtype).max / 4:  # else the result itself can't be written down
            assert subject.call(module, *scaled).isfinite().all(), f"at {scale:g}"
