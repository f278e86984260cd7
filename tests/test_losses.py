"""The vocabulary's loss in chunks against all logits at once, in every precision."""

from __future__ import annotations

import pytest
import torch

from transom.core.losses import CHUNK, IGNORED, PLAIN, Terms, cross_entropy_reference, linear_cross_entropy

TERMS = (PLAIN, Terms(label_smoothing=0.13), Terms(z_loss=0.07), Terms(soft_cap=2.5), Terms(0.21, 0.03, 3.5))


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float64, False), (torch.float32, False), (torch.bfloat16, False), (torch.float32, True)],
)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_chunks_give_the_loss_of_all_logits(dtype: torch.dtype, autocast: bool, biased: bool, terms: Terms) -> None:
    """More than one chunk, some targets that do not count: the sum, the hits and all gradients."""
    tokens, width, words = CHUNK + 37, 19, 83
    exact = torch.float64
    drawn = [torch.randn(tokens, width), torch.randn(words, width), torch.randn(words) if biased else None]
    given = [None if t is None else t.to(dtype).requires_grad_() for t in drawn]
    twins = [None if t is None else t.detach().to(exact).requires_grad_() for t in given]
    targets = torch.randint(words, (tokens,))
    targets[torch.rand(tokens) < 0.2] = IGNORED
    hidden, weight, bias = given
    assert hidden is not None
    assert weight is not None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss, hits = linear_cross_entropy(hidden, weight, bias, targets, terms)
    other_hidden, other_weight, other_bias = twins
    assert other_hidden is not None
    assert other_weight is not None
    wanted = cross_entropy_reference(other_hidden, other_weight, other_bias, targets, terms)
    within = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.02}[torch.bfloat16 if autocast else dtype]
    assert loss.dtype == (exact if dtype is exact else torch.float32)
    torch.testing.assert_close(loss.to(exact), wanted, rtol=within, atol=0.0)
    best = (other_hidden @ other_weight.T + (0 if other_bias is None else other_bias)).argmax(1)
    assert abs(int(hits) - int((best == targets).sum())) <= (0 if within < 1e-3 else 5)
    loss.backward()
    wanted.backward()
    for mine, theirs in zip(given, twins, strict=True):
        if mine is not None and theirs is not None:
            assert mine.grad is not None
            assert theirs.grad is not None
            assert mine.grad.dtype == mine.dtype
            apart = (mine.grad.to(exact) - theirs.grad).norm() / theirs.grad.norm()
            assert float(apart) < within
