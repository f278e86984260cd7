"""Run exported graphs against PyTorch and report how far they are apart, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..core.topology import Graph
from .cases import Arrays, Case, cases
from .reference import Recorder
from .report import Report
from .rows import Exported
from .session import Session, providers
from .walk import Masks, Walk, Whole, filled, seen

ALLOWED = 1e-4
"""The largest error of a graph in fp32, relative to a tensor's largest magnitude."""


def compare(
    functions: Mapping[str, Graph],
    exported: Exported,
    max_seq_len: int,
    *,
    target: str,
    precision: str = "fp32",
    allowed: float = ALLOWED,
    recorder: Recorder | None = None,
) -> Report:
    """Run every case in PyTorch and on every provider of this machine. The model is fp32, on CPU, in eval mode.

    `precision`: what the graphs are of; what they give in half precision is compared as the numbers that it stands for.
    `target`: what their operators are for. `allowed`: the largest error that passes. `recorder`: takes down what
    PyTorch gives.
    """
    sessions = {
        provider: {
            name: Session(exported.folder, facts, exported.state, provider) for name, facts in exported.graphs.items()
        }
        for provider in providers()
    }
    rows = []
    for case in cases(exported.graphs, exported.state, max_seq_len):
        walks = {provider: Walk(held, exported.state, case) for provider, held in sessions.items()}
        _walk(functions, exported, case, list(walks.values()), recorder)
        rows += [walk.tally.row(case.title, each, precision, target, allowed) for each, walk in walks.items()]
    return Report(tuple(rows))


def _walk(
    functions: Mapping[str, Graph], exported: Exported, case: Case, walks: list[Walk], recorder: Recorder | None
) -> None:
    """Walk one case in PyTorch and with each provider's graphs."""
    exact = {n: rule.torch_dtype(torch.float32) for graph in functions.values() for n, rule in graph.takes.items()}
    # Copies: a value made from an array is a view of it, and frees it.
    state = {n: torch.from_numpy(v.numpy().copy()).to(exact[n]) for n, v in walks[0].values.items() if n in exact}
    notes, masks = recorder.case(case) if recorder else None, Masks()
    for call, last in case.ending():
        facts = exported.graphs[call.graph]
        inputs = masks.inputs(facts, call)
        wanted, kept = _in_torch(functions[call.graph], inputs, state)
        state |= kept
        arrays = {name: tensor.numpy() for name, tensor in kept.items()}
        there = filled(arrays, exported.state, seen(facts, inputs, arrays))
        for walk in walks:
            found, here = walk.run(call, inputs)
            known = {name: Whole(array) for name, array in {**wanted, **there}.items()}
            walk.tally.add(known, {**found, **here}, call.inputs)
        if notes is not None:
            for name, array in {**wanted, **(there if last else {})}.items():
                notes.add(name, array)


def _in_torch(graph: Graph, inputs: Arrays, state: dict[str, torch.Tensor]) -> tuple[Arrays, dict[str, torch.Tensor]]:
    with torch.inference_mode():
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        outputs, after = graph.run(given, {name: state[name] for name in graph.takes})
        return {name: outputs[name].numpy() for name in graph.outputs}, {name: after[name] for name in graph.gives}
