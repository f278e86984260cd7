"""Declared abilities: what is declared is done, what is lacked can't be, and specs are refused accordingly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from transom.core.attention import ABILITIES
from transom.core.heads import MultiHeadAttention
from transom.core.tokens import Tokens
from transom.errors import SpecError
from transom.registry.compose import compose
from transom.registry.manager import default
from transom.registry.spec import parse_spec

from . import harness
from .harness import Case
from .specs import spec_of

ATTENTIONS = harness.bases("attention")
LENGTH = 29


def _causal(case: Case) -> bool:
    x = harness.vectors(1, LENGTH).requires_grad_()
    (found,) = torch.autograd.grad(harness.run(harness.stack([case], causal=True), x)[:, 7].sum(), x)
    return bool(found[:, 7].any()) and not found[:, 8:].any()


def _two_sided(case: Case) -> bool:
    x = harness.vectors(1, LENGTH).requires_grad_()
    (found,) = torch.autograd.grad(harness.run(harness.stack([case], causal=False), x)[:, 7].sum(), x)
    return bool(found[:, :7].any() and found[:, 8:].any())


def _cross(case: Case) -> bool:
    layer = harness.sublayer(case, causal=False, cross=True)
    x = harness.vectors(1, LENGTH)
    seen = []
    for _ in range(2):
        tokens = Tokens(torch.arange(7)[None])
        context = harness.context(x, causal=False, memory=harness.vectors(1, 7), memory_tokens=tokens)
        seen.append(layer(x, context, layer.prime(context))[0])
    return isinstance(layer, MultiHeadAttention) and not torch.equal(*seen)


def _documents(case: Case) -> bool:
    model = harness.stack([case], causal=harness.directions(case)[0])
    x, doc = harness.vectors(1, LENGTH), (torch.arange(LENGTH) >= 11).long()[None]
    apart = torch.cat([harness.run(model, x[:, :11]), harness.run(model, x[:, 11:])], dim=1)
    return harness.error(harness.run(model, x, document_ids=doc), apart) < 1e-10


def _hook(case: Case, hook: str) -> bool:
    x, causal = harness.vectors(1, LENGTH), harness.directions(case)[0]
    plain = harness.run(harness.stack([case], causal=causal), x)
    with_it = [harness.run(harness.stack([case], positions=[p], causal=causal), x) for p in harness.hooked(hook)]
    changed = [not torch.equal(y, plain) for y in with_it]
    assert all(changed) or not any(changed)
    return any(changed)


# `compile` is put to the proof by row 18.
PROBES: dict[str, Callable[[Case], bool]] = {
    "causal": _causal,
    "two_sided": _two_sided,
    "cross": _cross,
    "documents": _documents,
    "rotate": lambda case: _hook(case, "rotate"),
    "score": lambda case: _hook(case, "score"),
}


def test_every_ability_has_a_probe() -> None:
    assert {*PROBES, "compile"} == ABILITIES.keys()


@pytest.mark.parametrize("ability", PROBES)
@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
def test_a_declaration_is_true(case: Case, ability: str) -> None:
    declares = case.cls.declares
    if ability in declares.can:
        assert PROBES[ability](case)
        return
    try:
        does = PROBES[ability](case)
    except (NotImplementedError, AssertionError, RuntimeError, AttributeError, LookupError):
        assert ability in declares.lacks, "harmless, it is declared, but it fails"
        return
    assert not does, f"it can do {ability!r}: declare it"


@pytest.mark.parametrize("chosen", [None, *harness.bases("position")], ids=str)
@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
def test_a_spec_composes_unless_an_ability_is_lacked(case: Case, chosen: Case | None) -> None:
    for name in default().names("topology"):
        topology = default().get("topology", name)
        lacks = case.cls.declares.lacks
        needs = {"causal" if role.causal else "two_sided" for role in topology.stacks.values()}
        needs |= {"cross" for role in topology.stacks.values() if role.memory}
        needs |= set() if chosen is None else chosen.cls.hooks & {"rotate", "score"}
        spec: dict[str, Any] = spec_of(topology, case, position=chosen)
        if needs & lacks.keys():
            with pytest.raises(SpecError) as refused:
                compose(parse_spec(spec), device="meta")
            assert all(lacks[need] in str(refused.value) for need in needs & lacks.keys())
            assert case.cls.name in str(refused.value)
        else:
            compose(parse_spec(spec), device="meta")


def test_positions_declare_hooks_and_no_others() -> None:
    for case in harness.bases("position"):
        module = harness.position(case)
        x, tokens = harness.vectors(1, 3), Tokens(torch.arange(3)[None])
        q = x.unflatten(-1, (6, 6))
        calls = {
            "add": lambda module=module, x=x, tokens=tokens: module.add(x, tokens),
            "rotate": lambda module=module, q=q, tokens=tokens: module.rotate(q, tokens),
            "score": lambda module=module, q=q, tokens=tokens: module.score(tokens, tokens, q, q),
        }
        assert case.cls.hooks
        for hook, call in calls.items():
            if hook in case.cls.hooks:
                call()
            else:
                with pytest.raises(NotImplementedError, match=hook):
                    call()
