"""Rows 0, 7, 10, 11 and 20 for topologies: whole models of built-in parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ...core.state import State
from ...core.topology import Graph, Topology
from ...errors import InputError
from ...registry.compose import compose
from ...registry.spec import dump_spec, parse_spec
from ..cases import D_MODEL, with_option
from ..companions import bases, hooked, text_embedding
from ..places import Cases, once, with_heads
from ..registered import row
from ..specs import Draft
from ..stacks import shaken
from ..subjects import Subject
from ..trial import Trial

LENGTHS = (7, 11)


def _draft(subject: Subject) -> Draft:
    return Draft(subject.case, position=hooked("rotate")[0], **({"head": subject.beside} if subject.beside else {}))


def _model(subject: Subject) -> Topology:
    model = _draft(subject).model()
    shaken(model)
    return model


def _inputs(model: Topology, batch: int, length: int) -> dict[str, Tensor]:
    """Draw every input that the model's graphs declare; masks are all ones."""
    found: dict[str, Tensor] = {}
    sizes = {"batch": batch, "sequence": length, "total": length, "memory": length + 3}
    for graph in model.graphs().values():
        for name, put in graph.inputs.items():
            shape = tuple(sizes[d] if isinstance(d, str) else d for d in put.dims)
            mask = name.endswith("mask")
            found[name] = torch.ones(shape, dtype=torch.int64) if mask else torch.randint(put.high, shape)
    return found


@row(0, "its graphs declare what it takes, gives and remembers", kinds=("topology",), places=with_heads)
def declared_graphs(subject: Subject, trial: Trial) -> None:
    model = _model(subject)
    graphs = model.graphs()
    trial.holds(graphs, "it declares no graph")
    declared = model.declared()
    causal = list(subject.case.cls.stacks.values())[-1].causal
    wrong = bool(declared) != subject.case.cls.generates if causal else subject.case.cls.generates
    trial.holds(not wrong, "`generates` is not that it remembers, token by token")
    for graph in graphs.values():
        trial.holds(graph.takes.keys() <= declared.keys(), "a graph takes a state that is not declared")
        trial.holds(graph.gives.keys() <= declared.keys(), "a graph gives a state that is not declared")
        trial.holds(all(put.dims[0] == "batch" for put in graph.inputs.values()), "an input begins with no batch")


@row(7, "padding anywhere in each input", kinds=("topology",), places=with_heads)
@torch.no_grad()
def padding_in_a_model(subject: Subject, trial: Trial) -> None:
    model, batch, length = _model(subject), trial.size("batch", (3,)), trial.size("length", LENGTHS, least=5)
    inputs = _inputs(model, batch, length)
    want = model(**inputs)
    trial.holds(want.hidden.shape == (batch, length, D_MODEL), "hidden states have another shape", want.hidden.shape)
    assert subject.beside is not None
    for name in [name for name in inputs if name.endswith("ids")]:
        mask_name = name.replace("input_ids", "attention_mask")
        ids = inputs[name]
        gap = torch.randint(37, (batch, 4))
        wide = torch.cat([gap[:, :1], ids[:, :4], gap[:, 1:3], ids[:, 4:], gap[:, 3:]], dim=1)
        none, some = torch.zeros(batch, 1), torch.ones(batch, 4)
        mask = torch.cat([none, some, none, none, torch.ones_like(ids[:, 4:]), none], dim=1).long()
        got = model(**inputs | {name: wide, mask_name: mask})
        columns = mask[0].bool() if got.hidden.shape[1] == wide.shape[1] else slice(None)
        trial.close(got.hidden[:, columns], want.hidden, what=f"hidden states with padding in {name}")
        logits = got.logits[:, columns] if subject.beside.cls.per_token else got.logits
        trial.close(logits, want.logits, what=f"logits with padding in {name}")


@row(10, "graphs in steps equal the model", kinds=("topology",), places=once)
@torch.no_grad()
def graphs_in_steps(subject: Subject, trial: Trial) -> None:
    model, batch, length = _model(subject), trial.size("batch", (3,)), trial.size("length", LENGTHS, least=5)
    inputs = _inputs(model, batch, length)
    mask = inputs["attention_mask"]
    generates = subject.case.cls.generates
    mask[1:2, 2] = mask[2:3, 0] = 0
    want = model(**inputs)
    state: dict[str, Tensor] = {}
    if model.declared():
        tensors = model.empty_state(batch).tensors
        trial.holds(tensors.keys() == model.declared().keys(), "the state has other names than it declares")
    outputs: dict[str, Tensor] = {}
    for graph in model.graphs().values():
        given = {name: inputs[name] for name in graph.inputs}
        columns = next(iter(given.values())).shape[1]
        pieces = [3, 1, length - 4] if graph.takes and generates else [columns]  # who sees both sides is not cut
        state |= {n: t for n, t in empty(model, graph, batch, length).items() if n not in state}
        outputs = _run_in_pieces(trial, graph, given, state, pieces)
    trial.close(outputs["logits"], want.logits, what="the logits")


def empty(model: Topology, graph: Graph, batch: int, room: int) -> dict[str, Tensor]:
    """Return the state that a graph takes before the first token, with room for so many tokens where it has slots."""
    like = next(model.parameters())
    slots = room if graph.slots else None
    return {n: rule.empty(batch, 0, like.dtype, like.device, room=slots) for n, rule in graph.takes.items()}


@row(10, "the last token's logits alone", kinds=("topology",), excuse=lambda cls: _unless_generates(cls),
     places=lambda cases: once([case for case in cases if case.cls.generates]))  # fmt: skip
@torch.no_grad()
def the_last_tokens_logits(subject: Subject, trial: Trial) -> None:
    model, batch, length = _model(subject), trial.size("batch", (3,)), trial.size("length", LENGTHS, least=5)
    inputs, found = _inputs(model, batch, length), dict[bool, dict[str, Tensor]]()
    ends = [length - 1, length - 3, 0][:batch]
    for name in inputs:
        if name.endswith("attention_mask"):
            inputs[name] = (torch.arange(length if inputs[name].shape[1] == length else length + 3)
                            <= torch.tensor(ends).unsqueeze(1)).long()  # fmt: skip
    for last in (False, True):
        state: dict[str, Tensor] = {}
        for graph in model.graphs(last=last).values():
            state |= {n: t for n, t in empty(model, graph, batch, length).items() if n not in state}
            given = {name: inputs[name] for name in graph.inputs}
            found[last] = _run_in_pieces(trial, graph, given, state, [next(iter(given.values())).shape[1]])
    logits, want = found[True]["logits"], found[False]["logits"]
    trial.holds(logits.shape == (batch, 1, want.shape[2]), "the logits are not of one token a row", logits.shape)
    trial.close(logits[:, 0], want[torch.arange(batch), torch.tensor(ends)], what="the logits of the last real token")


def _run_in_pieces(
    trial: Trial, graph: Graph, inputs: dict[str, Tensor], state: dict[str, Tensor], pieces: list[int]
) -> dict[str, Tensor]:
    """Run a graph over its inputs, cut into pieces, and put what it gives into `state`."""
    found: list[dict[str, Tensor]] = []
    for columns in torch.arange(sum(pieces)).split(pieces):
        before = {name: state[name] for name in graph.takes}
        covered = torch.arange(int(columns[-1]) + 1)  # a mask of `total` is of all columns since the first step
        sliced = {n: t[:, covered if "total" in graph.inputs[n].dims else columns] for n, t in inputs.items()}
        outputs, after = graph.run(sliced, before)
        trial.holds(after.keys() == graph.gives.keys(), "a graph gives another state than it declares")
        trial.holds(outputs.keys() == graph.outputs.keys(), "a graph gives other outputs than it declares")
        sizes = [(outputs[name], dims) for name, dims in graph.outputs.items()]
        sizes += [(after[name], rule.dims) for name, rule in graph.gives.items()]
        trial.holds(all(t.dim() == len(dims) for t, dims in sizes), "a graph gives other dimensions than it declares")
        state.update(after)
        found.append(outputs)
    return {name: torch.cat([piece[name] for piece in found], dim=1) for name in graph.outputs}


def _unless_generates(cls: type) -> str:
    return "" if cls.generates else "it remembers nothing between steps"  # type: ignore[attr-defined]


def _written(inputs: dict[str, Tensor]) -> str:
    """Return the name of the ids that a model writes."""
    return next(name for name in reversed(inputs) if name.endswith("ids"))


def _begun(model: Topology, inputs: dict[str, Tensor], room: int | None) -> State:
    """Return the state before the first token that is written; with room where there is no source."""
    source = {name: tensor for name, tensor in inputs.items() if hasattr(model, "start") and "decoder" not in name}
    if source:
        return cast(State, model.start(**source))  # type: ignore[operator]
    return model.empty_state(len(next(iter(inputs.values()))), room)


@row(10, "in steps, with and without room", kinds=("topology",), excuse=_unless_generates,
     places=lambda cases: once([case for case in cases if case.cls.generates]))  # fmt: skip
@torch.no_grad()
def a_model_in_steps(subject: Subject, trial: Trial) -> None:
    model, batch, length = _model(subject), trial.size("batch", (3,)), trial.size("length", LENGTHS, least=5)
    inputs = _inputs(model, batch, length)
    name = _written(inputs)
    mask_name = name.replace("input_ids", "attention_mask")
    inputs[mask_name][1:2, 2] = inputs[mask_name][2:3, 0] = 0
    want = model(**inputs)
    for room in (None, length + 2):
        state, found = _begun(model, inputs, room), []
        for columns in torch.arange(length).split([3, 1, length - 4]):
            given = {each: inputs[each][:, columns] for each in (name, mask_name)}
            out = model(**given, state=state)
            state = out.state
            found.append(out.logits)
        trial.close(torch.cat(found, dim=1), want.logits, what="the logits in steps")


@row(10, "no step of a head that needs all tokens", kinds=("topology",), excuse=_unless_generates,
     places=lambda cases: once([case for case in cases if case.cls.generates]))  # fmt: skip
@torch.no_grad()
def a_head_of_whole_sequences(subject: Subject, trial: Trial) -> None:
    pooling = next(case for case in bases("head") if not case.cls.per_token)
    model = _model(replace(subject, beside=pooling))
    inputs = _inputs(model, 2, trial.size("length", (5,), least=2))
    state, name = _begun(model, inputs, None), _written(inputs)
    first = model(**{name: inputs[name][:, :1]}, state=state)
    later = {name: inputs[name][:, 1:]}
    what = "a head that needs all tokens, read off the later ones"
    trial.raises(InputError, lambda: model(**later, state=first.state.fork()), what)
    trial.holds(model(**later, state=first.state, logits=False).logits is None, "heads that are left out give logits")


@row(11, "a model's state moves by rows", kinds=("topology",), excuse=_unless_generates,
     places=lambda cases: once([case for case in cases if case.cls.generates]))  # fmt: skip
@torch.no_grad()
def a_model_s_state(subject: Subject, trial: Trial) -> None:
    model = _model(subject)
    inputs = _inputs(model, 3, 6)
    state, name = _begun(model, inputs, None), _written(inputs)
    order = torch.tensor([2, 0])
    first = model(**{name: inputs[name][:, :4]}, state=state)
    moved: State = first.state.reorder(order)
    got = model(**{name: inputs[name][order, 4:]}, state=moved)
    want = model(**{name: inputs[name][:, 4:]}, state=first.state.fork())
    trial.close(got.logits, want.logits[order], what="the logits of reordered rows")
    trial.holds(got.state is not None, "a step with a state gives none")
    assert got.state is not None
    trial.holds(got.state.nbytes * 3 == want.state.nbytes * 2, "two rows of three take other bytes")


def permuting(cases: Cases) -> Iterator[Subject]:
    """Put each topology that takes rows with an order of their own."""
    return once([case for case in cases if case.cls.permutes])


def _asking(subject: Subject) -> Topology:
    """Return a model whose embedding has a vector for what is asked for."""
    embedding = with_option(text_embedding(), "blank", True)
    model = Draft(subject.case, position=hooked("rotate")[0], embedding=embedding).model()
    shaken(model)
    return model


def _unless_permutes(cls: type) -> str:
    return "" if cls.permutes else "permutes: its tokens have the order of their columns alone"  # type: ignore[attr-defined]


@row(6, "an order of the row's own", kinds=("topology",), places=permuting, excuse=_unless_permutes)
@torch.no_grad()
def an_order_of_its_own(subject: Subject, trial: Trial) -> None:
    model, batch, length = _asking(subject), trial.size("batch", (3,)), trial.size("length", LENGTHS, least=5)
    ids = torch.randint(37, (batch, length))
    order = torch.stack([torch.randperm(length) + 1 for _ in range(batch)])
    asked = order.argsort(1)[:, -2:]
    want = model(input_ids=ids, order=order, asked=asked)
    trial.holds(want.hidden.shape == (batch, 2, D_MODEL), "it gives not what is asked for", want.hidden.shape)
    trial.holds(want.logits.shape[:2] == (batch, 2), "the logits are not of what is asked for", want.logits.shape)
    last = order >= length
    for changed, places in ((last, slice(0, 2)), (order >= length - 1, slice(0, 1))):
        other = model(input_ids=torch.where(changed, (ids + 1) % 37, ids), order=order, asked=asked)
        trial.close(
            other.hidden[:, places], want.hidden[:, places], what="what is asked for, itself and later ones others"
        )
    other = model(input_ids=torch.where(order == 1, (ids + 1) % 37, ids), order=order, asked=asked)
    trial.apart(other.hidden, want.hidden, "what is asked for does not know what comes first")


def remembering(cases: Cases) -> Iterator[Subject]:
    """Put each topology with the options by which it remembers whole segments."""
    return (each for each in permuting(cases) if _model(each).declared())


@row(10, "segments equal one pass in their order", kinds=("topology",), places=remembering,
     excuse=lambda cls: "" if cls.permutes else "permutes: it remembers no segments")  # fmt: skip
@torch.no_grad()
def segments(subject: Subject, trial: Trial) -> None:
    # Segment by segment, a token sees its own and earlier ones: one pass in which the order counts segments.
    model, batch = _model(subject), trial.size("batch", (3,))
    sizes = [2, 1, trial.size("length", (2, 4))]
    ids = torch.randint(37, (batch, sum(sizes)))
    order = torch.repeat_interleave(torch.arange(1, 4), torch.tensor(sizes)).expand(batch, -1)
    mask = torch.ones_like(ids)
    mask[1:2, 1], mask[2:3, 0], mask[2:3, 2] = 0, 0, 0
    for given in (torch.ones_like(ids), mask):
        want, state, found = model(input_ids=ids, order=order, attention_mask=given), model.empty_state(batch), []
        for part, real in zip(ids.split(sizes, dim=1), given.split(sizes, dim=1), strict=True):
            out = model(input_ids=part, attention_mask=real, state=state)
            state = out.state
            found.append(out.hidden)
        trial.close(torch.cat(found, dim=1), want.hidden, what="hidden states, segment by segment,")
        trial.holds(state.tensors.keys() == model.declared().keys(), "the state has other names than it declares")
        trial.holds(state.seen.tolist() == given.sum(1).tolist(), "the state counts other tokens than it has seen")


@row(20, "a model is what its spec and weights say", kinds=("topology",), places=with_heads)
@torch.no_grad()
def what_its_spec_says(subject: Subject, trial: Trial) -> None:
    draft = _draft(subject)
    spec = draft.spec()
    one, meta = compose(spec), compose(spec, device="meta")
    other = compose(parse_spec(dump_spec(spec), registry=draft.registry))
    trial.holds(all(t.is_meta for t in (*meta.parameters(), *meta.buffers())), "a tensor is not on the meta device")
    saved = one.state_dict()
    trial.holds(saved.keys() == meta.state_dict().keys(), "built on the meta device it has other weights")
    for name, tensor in other.state_dict().items():
        trial.equal(tensor, saved[name], f"{name}, composed again,")
    storages = [tensor.untyped_storage().data_ptr() for tensor in saved.values()]
    trial.holds(len(set(storages)) == len(storages), "one weight has two names")
    shaken(other, seed=9, dtype=torch.float32)
    other.load_state_dict(saved, strict=True)
    inputs = _inputs(one, 2, trial.size("length", (7,)))
    trial.equal(other(**inputs).hidden, one.eval()(**inputs).hidden, "the result of loaded weights")
