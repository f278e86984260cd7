"""Row 19: every component runs in ONNX Runtime as it does in PyTorch, its state included."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from transom.deploy import export
from transom.registry.compose import compose
from transom.registry.manager import default
from transom.registry.spec import parse_spec

from . import harness
from .harness import Case
from .specs import spec_of, token_head, written

LAYERS = 4  # of a model, so that none takes long
EXPORTED_KINDS = ("attention", "position", "norm", "feedforward", "embedding", "head", "topology")


@dataclass(frozen=True)
class Model:
    """A spec and the cases that it is made of; each export takes seconds, so each model holds many."""

    label: str
    spec: dict[str, Any]
    parts: tuple[Case, ...]


def _takes(attention: Case, direction: str) -> bool:
    return direction in attention.cls.declares.can


@functools.cache
def _models() -> tuple[Model, ...]:
    """Return one model for each topology and head, whose layers differ in all else."""
    return tuple(itertools.chain.from_iterable(_models_of(topology) for topology in harness.bases("topology")))


def _models_of(topology: Case) -> Iterator[Model]:
    role = next(iter(topology.cls.stacks.values()))
    direction = "causal" if role.causal else "two_sided"
    wired = len(topology.cls.stacks) > 1
    attentions = [c for c in harness.bases("attention") if _takes(c, "cross" if wired else direction)]
    shares = [attentions[i : i + LAYERS] for i in range(0, len(attentions), LAYERS)]
    heads = [token_head()] if topology.cls.generates else list(harness.bases("head"))
    texts = [c for c in harness.bases("embedding") if "vocab_size" in c.config.__dataclass_fields__]
    others = [c for c in harness.bases("embedding") if c not in texts]
    for i in range(max(len(shares), len(heads))):
        head, share = heads[i % len(heads)], shares[i % len(shares)]
        pooled = not head.cls.per_token
        embedding = others[0] if pooled and others else texts[0]
        layers, parts = _layers(share, i * LAYERS)
        main = next(c for c in attentions if not c.cls.declares.lacks)
        added = harness.hooked("add")[i % len(harness.hooked("add"))]
        spec = spec_of(topology.cls, main, position=added, layers=layers, embedding=embedding, head=head)
        yield Model(f"{topology}-{i}", spec, (topology, head, embedding, added, main, *parts))


def _layers(attentions: list[Case], start: int) -> tuple[list[dict[str, Any]], list[Case]]:
    """Return a layer for each attention, and what it is made of: the other kinds take turns."""
    feedforwards, norms = (itertools.cycle(harness.bases(kind)) for kind in ("feedforward", "norm"))
    placements = itertools.cycle(("pre", "post", "sandwich", "parallel"))
    chosen = deque(harness.bases("position"))
    chosen.rotate(-start)
    layers, parts = [], []
    for attention in attentions:
        position = next(p for p in chosen if harness.composes(attention, p))
        chosen.remove(position)
        chosen.append(position)
        feedforward, norm = next(feedforwards), next(norms)
        layers.append({
            "placement": next(placements), "attention": written(attention), "feedforward": written(feedforward),
            "norm": written(norm), "position": written(position),
        })  # fmt: skip
        parts += [attention, position, feedforward, norm]
    return layers, parts


@pytest.mark.parametrize("model", _models(), ids=lambda model: model.label)
def test_row_19_the_exported_graph_agrees(model: Model, tmp_path: Path) -> None:
    report = export(harness.shaken(compose(parse_spec(model.spec))).float(), tmp_path / "out")
    assert not report.failed
    assert len(report.rows) >= 3


@pytest.mark.parametrize("kind", EXPORTED_KINDS)
def test_row_19_leaves_no_component_out(kind: str) -> None:
    covered = {part.cls for model in _models() for part in model.parts}
    registered = {default().get(kind, name) for name in default().names(kind, everything=True)}
    assert registered <= covered
