"""Rows 1, 7, 10, 20 and 21 for topologies: whole models, composed of parts that no test names."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from transom.core.state import State
from transom.core.topology import Graph, Topology
from transom.registry.compose import compose
from transom.registry.manager import default
from transom.registry.spec import dump_spec, parse_spec

from . import harness
from .harness import Case
from .specs import spec_of, token_head, written

TOPOLOGIES = harness.cases("topology")


def _attention() -> Case:
    """Return an attention that can stand anywhere."""
    return next(case for case in harness.cases("attention") if not case.cls.declares.lacks)


def _spec(case: Case, head: Case | None = None) -> dict[str, Any]:
    options = {f.name: getattr(case.config, f.name) for f in dataclasses.fields(case.config)}
    return spec_of(case.cls, _attention(), position=harness.hooked("rotate")[0], options=options, head=head)


def _model(case: Case, head: Case | None = None) -> Topology:
    model = compose(parse_spec(_spec(case, head)))
    harness.shaken(model)
    return model


def _inputs(model: Topology, batch: int, length: int) -> dict[str, Tensor]:
    """Draw every input that the model's graphs declare; masks are all ones."""
    found: dict[str, Tensor] = {}
    sizes = {"batch": batch, "sequence": length, "memory": length + 3}
    for graph in model.graphs().values():
        for name, put in graph.inputs.items():
            shape = tuple(sizes[d] if isinstance(d, str) else d for d in put.dims)
            mask = name.endswith("mask")
            found[name] = torch.ones(shape, dtype=torch.int64) if mask else torch.randint(put.high, shape)
    return found


def _per_token(case: Case) -> bool:
    return bool(case.cls.generates)


def _heads(case: Case) -> list[Case]:
    """Return heads that a topology can read: any, where it is not asked for the next token."""
    return [token_head()] if _per_token(case) else list(harness.bases("head"))


PAIRS = [(case, head) for case in TOPOLOGIES for head in _heads(case)]


@torch.no_grad()
@pytest.mark.parametrize(("case", "head"), PAIRS, ids=str)
def test_row_7_padding_anywhere_changes_nothing(case: Case, head: Case, rng: random.Random) -> None:
    model, length = _model(case, head), rng.choice((7, 11))
    inputs = _inputs(model, 3, length)
    want = model(**inputs)
    assert want.hidden.shape == (3, length, harness.D_MODEL)
    for name in [name for name in inputs if name.endswith("ids")]:
        mask_name = name.replace("input_ids", "attention_mask")
        ids = inputs[name]
        gap = torch.randint(37, (3, 4))
        wide = torch.cat([gap[:, :1], ids[:, :4], gap[:, 1:3], ids[:, 4:], gap[:, 3:]], dim=1)
        mask = torch.cat([torch.zeros(3, 1), torch.ones(3, 4), torch.zeros(3, 2), torch.ones_like(ids[:, 4:]),
                          torch.zeros(3, 1)], dim=1).long()  # fmt: skip
        got = model(**inputs | {name: wide, mask_name: mask})
        columns = mask[0].bool() if got.hidden.shape[1] == wide.shape[1] else slice(None)
        harness.close(got.hidden[:, columns], want.hidden)
        if head.cls.per_token:
            harness.close(got.logits[:, columns], want.logits)
        else:
            harness.close(got.logits, want.logits)


@torch.no_grad()
@pytest.mark.parametrize("case", TOPOLOGIES, ids=str)
def test_row_10_graphs_in_steps_equal_the_model(case: Case, rng: random.Random) -> None:
    model, length = _model(case), rng.choice((7, 11))
    inputs = _inputs(model, 3, length)
    mask = inputs["attention_mask"]
    mask[1, 2] = mask[2, 0] = 0
    want = model(**inputs)
    state: dict[str, Tensor] = {}
    if case.cls.generates:
        state = dict(model.empty_state(3).tensors)
        assert state.keys() == model.declared().keys()
    outputs: dict[str, Tensor] = {}
    for graph in model.graphs().values():
        assert graph.takes.keys() <= model.declared().keys()
        outputs = _run_in_steps(graph, {name: inputs[name] for name in graph.inputs}, state)
    harness.close(outputs["logits"], want.logits)


def _run_in_steps(graph: Graph, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run a graph over its inputs, in pieces where it takes a state, and put what it gives into `state`."""
    length = next(iter(inputs.values())).shape[1]
    pieces = [3, 1, length - 4] if graph.takes else [length]
    found: list[dict[str, Tensor]] = []
    for columns in torch.arange(length).split(pieces):
        before = {name: state[name] for name in graph.takes}
        outputs, after = graph.run({name: tensor[:, columns] for name, tensor in inputs.items()}, before)
        assert after.keys() == graph.gives.keys()
        assert outputs.keys() == graph.outputs.keys()
        assert all(outputs[name].dim() == len(dims) for name, dims in graph.outputs.items())
        assert all(after[name].dim() == len(rule.dims) for name, rule in graph.gives.items())
        state.update(after)
        found.append(outputs)
    return {name: torch.cat([piece[name] for piece in found], dim=1) for name in graph.outputs}


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in TOPOLOGIES if case.cls.generates], ids=str)
def test_row_11_a_model_s_state_moves_by_rows(case: Case) -> None:
    model = _model(case)
    inputs = _inputs(model, 3, 6)
    source = {name: tensor for name, tensor in inputs.items() if hasattr(model, "start") and "decoder" not in name}
    state = model.start(**source) if source else model.empty_state(3)  # type: ignore[operator]
    name = next(name for name in reversed(inputs) if name.endswith("ids"))
    order = torch.tensor([2, 0])
    first = model(**{name: inputs[name][:, :4]}, state=state)
    moved: State = first.state.reorder(order)
    got = model(**{name: inputs[name][order, 4:]}, state=moved)
    want = model(**{name: inputs[name][:, 4:]}, state=first.state.fork())
    harness.close(got.logits, want.logits[order])
    assert got.state is not None
    assert got.state.nbytes * 3 == want.state.nbytes * 2


@torch.no_grad()
@pytest.mark.parametrize(("case", "head"), PAIRS, ids=str)
def test_rows_20_and_21_a_model_is_what_its_spec_and_weights_say(case: Case, head: Case) -> None:
    spec = parse_spec(_spec(case, head))
    again = parse_spec(dump_spec(spec))
    one, other, meta = compose(spec), compose(again), compose(spec, device="meta")
    assert all(t.is_meta for t in (*meta.parameters(), *meta.buffers()))
    saved = one.state_dict()
    assert saved.keys() == meta.state_dict().keys()
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
    storages = [tensor.untyped_storage().data_ptr() for tensor in saved.values()]
    assert len(set(storages)) == len(storages), "one weight has two names"
    harness.shaken(other, seed=9, dtype=torch.float32)
    other.load_state_dict(saved, strict=True)
    inputs = _inputs(one, 2, 7)
    assert torch.equal(other(**inputs).hidden, one.eval()(**inputs).hidden)


@torch.no_grad()
def test_a_model_returns_the_weights_of_each_softmax_attention() -> None:
    for case in harness.able("score"):
        layers = [{"attention": written(case)}, {}]
        topologies = [default().get("topology", name) for name in default().names("topology")]
        for topology in [t for t in topologies if len(t.stacks) == 1]:
            model = compose(parse_spec(spec_of(topology, harness.able("score")[0], layers=layers))).double()
            out = model(input_ids=torch.randint(37, (2, 23)), attentions=True)
            assert len(out.attentions) == 2
            for weights in out.attentions:
                assert weights.shape == (2, 6, 23, 23)
                harness.close(weights.sum(-1), torch.ones(2, 6, 23, dtype=torch.float64))
            plain = model(input_ids=torch.randint(37, (2, 23)))
            assert plain.attentions is None
