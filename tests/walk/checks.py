"""What a combination must do: train, decode and export, or be refused with a reason before it is built."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch

from transom.conformance.rows.models import empty
from transom.core.topology import Topology
from transom.core.vocabulary import Vocabulary
from transom.deploy import export
from transom.registry.check import check
from transom.registry.compose import build_objective, compose
from transom.registry.marks import BrokenSpec
from transom.registry.spec import Spec
from transom.training.step import Step
from walk.combinations import CROSS, OPTIONS, VOCAB_SIZE, Combination, spec_of

STEPS = 3
ROWS, LENGTH = 3, 17  # longer than any window or block, and a multiple of none
DECODED = 1e-9  # the largest error of decoding in fp64, relative to the largest logit


def walk(row: Combination) -> float:
    """Compose, train, decode and export a combination, and return the largest error of its export."""
    torch.set_num_threads(1)
    spec = spec_of(row)
    model = compose(spec)
    train(model, spec)
    if model.generates:
        decode(model)
    return exported(model)


def refusal(row: Combination, spec: Spec) -> str | None:
    """Return why a combination is refused, None where it composes; assert that the reason is one."""
    try:
        check(spec)
    except BrokenSpec as error:
        message = error.errors[0].message
        others = (f"position '{row.position}'", CROSS if row.place == CROSS else f"topology '{row.topology}'")
        assert f"attention '{row.attention}'" in message, f"does not name the attention: {message}"
        assert any(other in message for other in others), f"does not name what it does not compose with: {message}"
        assert ", because " in message, f"gives no reason: {message}"
        return message
    return None


def train(model: Topology, spec: Spec) -> list[float]:
    """Train a model for a few steps on one batch, and return its losses, nats a target.

    Assert that every parameter gets a gradient, and that the loss is finite and falls.
    """
    torch.manual_seed(0)
    objective = build_objective(spec, Vocabulary(VOCAB_SIZE, pad=0, bos=1, eos=1, mask=2))
    raw = {name: _field(name) for name in sorted(objective.fields)}
    prepared = objective.prepare(raw, torch.Generator().manual_seed(0))
    step = Step(model.train(), objective)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS + 1):
        optimizer.zero_grad()
        total, _ = step(prepared.inputs, prepared.targets, prepared.mask)
        loss = total / prepared.count
        loss.backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        idle = [name for name, grad in grads.items() if grad is None or not grad.any() or not grad.isfinite().all()]
        assert not idle, f"no gradient, or none that is finite: {', '.join(idle)}"
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0], f"the loss does not fall: {losses}"
    return losses


def decode(model: Topology) -> float:
    """Return how far logits of token by token, with a state, are from those of the whole, relative to the largest.

    Whole and in steps, it is the declared graphs that say what a model takes: those that take a state take steps.
    """
    model = copy.deepcopy(model).double().eval()
    torch.manual_seed(1)
    graphs = {name: ({n: _ids() for n in graph.inputs if n.endswith("input_ids")}, graph)
              for name, graph in model.graphs().items()}  # fmt: skip
    with torch.no_grad():
        whole = model(**{name: ids for inputs, _ in graphs.values() for name, ids in inputs.items()}).logits
        state: dict[str, torch.Tensor] = {}
        steps = []
        for inputs, graph in graphs.values():
            masks = {name: put.dims[1] for name, put in graph.inputs.items() if name.endswith("attention_mask")}
            if not graph.takes:
                state |= graph.run(inputs | {name: torch.ones(ROWS, LENGTH).long() for name in masks}, {})[1]
                continue
            state = empty(model, graph, ROWS, LENGTH + 1) | state
            for t in range(LENGTH):
                now = {name: ids[:, t : t + 1] for name, ids in inputs.items()}
                now |= {n: torch.ones(ROWS, t + 1 if dim == "total" else 1).long() for n, dim in masks.items()}
                outputs, after = graph.run(now, {name: state[name] for name in graph.takes})
                state |= after
                steps.append(outputs["logits"])
    error = float((torch.cat(steps, dim=1) - whole).abs().max() / whole.abs().max())
    assert error <= DECODED, f"decoding token by token differs by {error:.1e}"
    return error


def exported(model: Topology) -> float:
    """Export a model and return the largest error of its parity report; raise `ExportError` where it is too large."""
    with tempfile.TemporaryDirectory() as folder:
        return max(row.error for row in export(model, Path(folder) / "out").rows)


def _ids() -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (ROWS, LENGTH))


def _field(name: str) -> torch.Tensor:
    return torch.randint(OPTIONS["n_classes"], (ROWS,)) if name == "labels" else _ids()
