"""The router against its definition, written out token by token; and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from transom.conformance.costs import training_costs
from transom.conformance.stacks import context, shaken
from transom.core.component import Site
from transom.core.routing import Router, Routing
from transom.errors import SpecError
from transom.registry.manager import default
from transom.registry.spec import parse_spec

CHOICES: tuple[tuple[int, int, bool, Routing], ...] = (
    (7, 3, True, Routing()),
    (7, 3, False, Routing(score="sigmoid", scale=2.5)),
    (7, 3, True, Routing(selection_bias=True)),
    (12, 3, True, Routing(score="sigmoid", n_groups=4, n_active_groups=2, selection_bias=True, scale=1.5)),
    (6, 2, False, Routing(n_groups=6, n_active_groups=3)),
)


def by_definition(logits: list[float], bias: list[float], n: int, renormalise: bool, how: Routing) -> list[float]:
    """Return the weight of each expert for one token, 0 where it is not taken."""
    if how.score == "softmax":
        total = sum(map(math.exp, logits))
        scores = [math.exp(value) / total for value in logits]
    else:
        scores = [1 / (1 + math.exp(-value)) for value in logits]
    ranked = [score + more for score, more in zip(scores, bias, strict=True)]
    size = len(logits) // how.n_groups
    groups = [range(start, start + size) for start in range(0, len(logits), size)]
    groups.sort(key=lambda group: -sum(sorted(ranked[e] for e in group)[-2:]))
    there = [expert for group in groups[: how.n_active_groups] for expert in group]
    taken = sorted(there, key=lambda expert: -ranked[expert])[:n]
    total = sum(scores[expert] for expert in taken) if renormalise else 1.0
    return [how.scale * scores[e] / total if e in taken else 0.0 for e in range(len(logits))]


@pytest.mark.parametrize(("experts", "active", "renormalise", "how"), CHOICES)
def test_a_router_is_what_its_definition_says(experts: int, active: int, renormalise: bool, how: Routing) -> None:
    torch.manual_seed(5)
    router = Router(11, experts, active, renormalise, how).double()
    bias = torch.zeros(experts, dtype=torch.float64)
    if how.selection_bias:
        router.selection_bias.copy_(bias := torch.randn(experts, dtype=torch.float64))
    x = 3 * torch.randn(50, 11, dtype=torch.float64)
    weights, chosen = router.choose(x)
    found = torch.zeros(50, experts, dtype=torch.float64).scatter(1, chosen, weights)
    for row, logits in enumerate((x @ router.weight.T).tolist()):
        wanted = torch.tensor(by_definition(logits, bias.tolist(), active, renormalise, how), dtype=torch.float64)
        assert torch.allclose(found[row], wanted, atol=1e-12), row


def test_a_bias_chooses_and_has_no_gradient() -> None:
    router = Router(5, 4, 2, True, Routing(selection_bias=True))
    assert "selection_bias" in router.state_dict()
    assert "selection_bias" not in dict(router.named_parameters())
    router.selection_bias.copy_(torch.tensor([0.0, 9.0, 0.0, 9.0]))
    weights, chosen = router.choose(torch.randn(6, 5))
    assert sorted(set(chosen.flatten().tolist())) == [1, 3]
    weights.sum().backward()
    assert router.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"router": {"n_groups": 3}}, "feedforward.router.n_groups: 3 groups do not divide 8 experts evenly"),
        ({"router": {"n_groups": 8, "n_active_groups": 1}}, "n_active_groups: 1 groups have 1 experts, fewer than 2"),
        ({"router": {"n_groups": 2, "n_active_groups": 3}}, "router.n_active_groups: 3 of 2 groups; at least 1"),
        ({"router": {"score": "tanh"}}, "router.score: "),
        ({"shared": {"n": 0}}, "shared.n: 0 is not a number of experts; at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_place(options: dict[str, Any], said: str) -> None:
    feedforward = {"kind": "experts", "n_experts": 8, "n_active": 2} | options
    with pytest.raises(SpecError) as caught:
        parse_spec({"extends": "tiny_gpt", "model": {"layer": {"feedforward": feedforward}}})
    assert said in str(caught.value)


def test_training_costs_as_much_as_there_are_experts() -> None:
    """Not as their number's square, which it does where the gradient of each is as large as that of all."""

    def work(n_experts: int) -> int:
        cls = default().get("feedforward", "experts")
        config = cls.Config(n_experts=n_experts, n_active=n_experts, d_ff=13)
        layer = shaken(cls(config, Site(d_model=12, max_seq_len=9)))
        return training_costs(lambda x: layer(x, context(x))[0], torch.randn(1, 3, 12, dtype=torch.float64)).work

    assert work(60) < 2.5 * work(30)
