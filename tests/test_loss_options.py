"""Options of cross-entropy in a spec: they change what is trained, and never what is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from transom.core.losses import IGNORED, Terms, cross_entropy_reference, linear_cross_entropy
from transom.errors import SpecError
from transom.registry.compose import build_objective, compose
from transom.registry.spec import load_spec
from transom.training.step import Step

SMOOTHED = "objective={kind: causal_lm, label_smoothing: 0.2, z_loss: 0.03}"


def batch(step: Step, length: int = 19) -> Any:
    """Return a prepared batch of random tokens."""
    return step.objective.prepare({"input_ids": torch.randint(97, (3, length + 1))}, torch.Generator())


@pytest.mark.parametrize("cap", [None, 1.5])
def test_a_spec_s_loss_is_that_of_all_logits(cap: float | None) -> None:
    """Smoothed, with the square of the sums' logarithms, of bounded logits: as one writes it from all of them."""
    spec = load_spec("tiny_gpt", [SMOOTHED, *([] if cap is None else [f"model.head.soft_cap={cap}"])])
    step = Step(compose(spec), build_objective(spec, None)).train()
    prepared = batch(step)
    (total,), _ = step(prepared.inputs, prepared.targets, prepared.mask)
    found = torch.autograd.grad(total, list(step.parameters()))

    logits = step.model(**prepared.inputs).logits.flatten(0, 1)
    logs = logits.log_softmax(1)
    wanted = -(0.8 * logs.gather(1, prepared.targets.flatten().unsqueeze(1)).squeeze(1) + 0.2 * logs.mean(1)).sum()
    wanted = wanted + 0.03 * logits.logsumexp(1).square().sum()
    torch.testing.assert_close(total, wanted)
    for mine, theirs in zip(found, torch.autograd.grad(wanted, list(step.parameters())), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    if cap is not None:
        assert float(logits.detach().abs().max()) <= cap


@pytest.mark.parametrize(
    "asked",
    [SMOOTHED, "objective={kind: sum, parts: {head: {kind: causal_lm, label_smoothing: 0.2, z_loss: 0.03}}}"],
)
def test_what_is_measured_is_the_likelihood_alone(asked: str) -> None:
    spec = load_spec("tiny_gpt", [asked])
    step = Step(compose(spec), build_objective(spec, None))
    prepared = batch(step)
    logits = step.model(**prepared.inputs).logits.flatten(0, 1)
    plain = F.cross_entropy(logits, prepared.targets.flatten(), reduction="sum")
    with torch.no_grad():
        (measured,), _ = step.eval()(prepared.inputs, prepared.targets, prepared.mask)
        (trained,), _ = step.train()(prepared.inputs, prepared.targets, prepared.mask)
    torch.testing.assert_close(measured, plain)
    assert trained > measured + 1


@pytest.mark.parametrize(
    ("option", "why"),
    [("label_smoothing: 1.0", "not a share of a target"), ("label_smoothing: -0.1", "share"), ("z_loss: -1", "grow")],
)
def test_options_without_sense_are_refused_where_they_stand(option: str, why: str) -> None:
    with pytest.raises(SpecError, match=why) as error:
        load_spec("tiny_gpt", [f"objective={{kind: causal_lm, {option}}}"])
    assert f"objective.{option.split(':')[0]}" in str(error.value)


def test_a_target_of_no_likelihood_costs_what_it_should() -> None:
    """Its share is 0 in fp32, and the logarithm of that is not what it costs."""
    hidden, weight = torch.full((5, 1), 10.0, requires_grad=True), torch.tensor([[-30.0], [30.0], [0.0]])
    targets = torch.tensor([0, 1, 2, IGNORED, 0])
    loss, hits = linear_cross_entropy(hidden, weight, None, targets)
    assert (loss.item(), int(hits)) == (1500.0, 1)
    loss.backward()
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == [60.0, 0.0, 30.0, 0.0, 60.0]


def test_a_bias_alone_may_be_trained() -> None:
    hidden, weight, targets = torch.randn(11, 7), torch.randn(13, 7), torch.randint(13, (11,))
    bias = torch.randn(13, requires_grad=True)
    terms = Terms(0.1, 0.2, 2.0)
    (mine,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, bias, targets, terms)[0], bias)
    (theirs,) = torch.autograd.grad(cross_entropy_reference(hidden, weight, bias, targets, terms), bias)
    torch.testing.assert_close(mine, theirs)
