"""Every combination composes or is refused with a reason; rows in which all parts meet train, decode and export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from walk import __main__ as command
from walk.checks import decode, exported, refusal, train
from walk.combinations import (
    CROSS,
    KINDS,
    NONE,
    OWN,
    Combination,
    combinations,
    covering,
    pairs,
    representatives,
    spec_of,
)
from walk.table import Outcome, write_table

from transom.core import topology
from transom.core.attention import Mechanism
from transom.core.slots import resume
from transom.core.stack import Stack
from transom.deploy.parity import ALLOWED
from transom.registry.compose import compose
from transom.registry.manager import default

# A stack that serves training alone gives nothing that could be walked.
WHOLE = [
    name for name in default().names("topology") if not (cls := default().get("topology", name)).readers(cls.Config())
]


def lacking(row: Combination) -> set[str]:
    """Return what a row asks of its attention that it declares to lack, or, a mixer, has no heads for."""
    attention = default().get("attention", row.attention)
    lacks = set(attention.declares.lacks)
    if row.place == CROSS:
        return lacks & {"cross"}
    position = None if row.position == NONE else default().get("position", row.position)
    if position is not None and not issubclass(attention, Mechanism) and (position.projects or position.by_content):
        lacks |= {"score"}
    hooks = set() if position is None else position.hooks
    roles = default().get("topology", row.topology).stacks.values()
    return lacks & (hooks | {"causal" if role.causal else "two_sided" for role in roles})


ROWS = combinations()
# Chosen by what attentions declare, which takes no spec: that those are the rows that compose is tested below.
CHOSEN = covering(ROWS, lambda row: bool(lacking(row)))
SOUND = [row for row in CHOSEN if not lacking(row)]


def added(position: str) -> bool:
    """Say whether a position is told apart from the next by what is added to embeddings."""
    return position != NONE and "add" in default().get("position", position).hooks


def test_every_kind_is_walked_whole() -> None:
    for kind in KINDS:
        without = set() if kind == "attention" else {NONE}
        assert {getattr(row, kind) for row in ROWS} == {*default().names(kind), *without}
    assert {row.topology for row in ROWS} == set(WHOLE)
    assert {row.place for row in ROWS} == {OWN, CROSS}
    assert len(set(ROWS)) == len(ROWS)


@pytest.mark.parametrize("attention", default().names("attention"))
def test_a_combination_is_refused_where_its_attention_lacks_what_it_takes_and_built_elsewhere(attention: str) -> None:
    for row in (row for row in ROWS if row.attention == attention):
        spec = spec_of(row)
        assert (refusal(row, spec) is not None) == bool(lacking(row)), row
        if not lacking(row):
            assert next(compose(spec, "meta").parameters()).is_meta


def test_any_two_parts_meet_in_a_chosen_row() -> None:
    assert len(CHOSEN) <= 1.2 * len(default().names("attention")) * (len(default().names("position")) + 1)
    met = frozenset().union(*map(pairs, CHOSEN))
    assert met == frozenset().union(*map(pairs, ROWS))
    sound = frozenset().union(*(pairs(row) for row in ROWS if not lacking(row)))
    assert sound == frozenset().union(*map(pairs, SOUND))
    assert covering(ROWS, lambda row: bool(lacking(row))) == CHOSEN


@pytest.mark.parametrize("row", SOUND, ids=str)
def test_a_chosen_row_trains_and_decodes(row: Combination) -> None:
    spec = spec_of(row)
    model = compose(spec)
    train(model, spec)
    if model.generates:
        decode(model)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("topology", WHOLE)
def test_each_attention_position_and_norm_exports(topology: str) -> None:
    rows = [row for row in SOUND if row.topology == topology]
    rows = [row for row in rows if row.place == CROSS] or rows  # a decoder's own attention is that of the other stack
    few = representatives(rows)
    model = compose(spec_of(*few))
    depths = [len(stack.blocks) for stack in model.children() if isinstance(stack, Stack)]
    assert depths[-1] == len(few)
    for kind in KINDS:
        assert {getattr(row, kind) for row in few} == {getattr(row, kind) for row in rows}
    if model.generates:
        decode(model)
    assert 0 < exported(model) <= ALLOWED


# Across a memory no position biases scores: there the stacks above have no bias either.
@pytest.mark.parametrize("topology", [name for name in WHOLE if len(default().get("topology", name).stacks) == 1])
def test_what_chooses_by_content_exports_where_nothing_biases_its_scores(topology: str) -> None:
    """With a bias all scores are formed whatever the length; without one a graph must not be asked for its length."""
    plain = [row for row in ROWS if row.topology == topology and not lacking(row) and row.position == NONE]
    few = {row.attention: row for row in plain if default().get("attention", row.attention).chooses}
    assert few
    assert 0 < exported(compose(spec_of(*few.values()))) <= ALLOWED


def test_the_checks_see_an_idle_parameter_and_a_state_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in SOUND if default().get("topology", row.topology).generates and added(row.position))
    model = compose(spec_of(row))

    def later(*given: Any) -> Any:
        inputs, state = resume(*given)
        state.tensors["seen"] += 1
        return inputs, state

    decode(model)
    monkeypatch.setattr(topology, "resume", later)
    with pytest.raises(AssertionError, match="decoding token by token differs"):
        decode(model)
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(AssertionError, match="no gradient, or none that is finite: idle"):
        train(model, spec_of(row))


# -- the page ---------------------------------------------------------------------------------------------------------


def test_a_cell_holds_the_largest_error_or_the_number_of_a_reason() -> None:
    outcomes: dict[Combination, Outcome] = {
        Combination("t", OWN, "a", "p", "m"): 2e-7,
        Combination("t", OWN, "a", "p", "n"): 3.4e-6,
        Combination("t", OWN, "b", "p", "m"): "b can't, because of x",
        Combination("t", OWN, "b", "p", "n"): "b can't, because of x",
        Combination("t", CROSS, "b", "p", "m"): 0.0,
        Combination("t", CROSS, "b", "p", "n"): "b can't, because of y",
    }
    page = write_table(outcomes, {"torch": "2.0", "Python": "3.x"})
    assert "6 combinations, of which 3\ncompose and 3 are refused" in page
    assert "over all norms\n(`m`, `n`)" in page
    assert "with torch 2.0, Python 3.x." in page
    assert "## t\n\n| attention | p |\n|---|---|\n| a | ok, 3e-06 |\n| b | refused (1) |\n" in page
    assert "## t, across the memory\n\n| attention | p |\n|---|---|\n| b | m: ok, 0e+00; n: refused (2) |\n" in page
    assert page.endswith("## Reasons\n\n1. b can't, because of x\n2. b can't, because of y\n")


def test_the_page_is_of_what_is_registered(root: Path) -> None:
    page = (root / "docs" / "combinations.md").read_text(encoding="utf-8")
    # What lacks nothing composes, as is tested above.
    outcomes = {row: refusal(row, spec_of(row)) if lacking(row) else 0.0 for row in ROWS}
    fresh = write_table(outcomes, {})  # type: ignore[arg-type]
    unknown = r"so are \w+\."
    assert re.sub(unknown, "", page.partition("Written by")[0]) == re.sub(unknown, "", fresh.partition("Written by")[0])
    assert page.partition("## Reasons")[2] == fresh.partition("## Reasons")[2]
    assert page.count("| ok") == fresh.count("| ok")


def test_a_walk_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "KNOWN", tmp_path / "walk.jsonl")
    assert command.known() == {}
    command.KNOWN.write_text('{"key": "a1", "row": "x", "error": 2e-07}\n{"key": "b2", "ro')
    assert command.known() == {"a1": 2e-7}
    assert command.KNOWN.read_text() == '{"key": "a1", "row": "x", "error": 2e-07}\n'


def test_rows_are_known_by_spec_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = SOUND[:2]
    key = command.key_of(first)
    assert key == command.key_of(first) != command.key_of(second)
    monkeypatch.setattr(command, "versions", lambda: {"torch": "0.1"})
    assert command.key_of(first) != key
