"""Write specs whose every part is chosen by what it declares, by no name."""

from __future__ import annotations

import dataclasses
from typing import Any

from transom.core.component import Part
from transom.registry.manager import default

from . import harness
from .harness import D_MODEL, MAX_SEQ_LEN, Case


def written(case: Case | Part) -> dict[str, Any]:
    """Return a component and its options as a spec says them."""
    config = case.config
    options = {
        f.name: written(value) if isinstance(value, Part) else value
        for f in dataclasses.fields(config)
        if (value := getattr(config, f.name)) != f.default
    }
    return {"kind": default().full_name(case.cls), **options}


def layer_of(
    attention: Case | None, feedforward: Case | None, norm: Case | None, placement: str = "pre"
) -> dict[str, Any]:
    """Return one layer as a spec says it."""
    parts = {"attention": attention, "feedforward": feedforward, "norm": norm}
    return {"placement": placement, **{name: "none" if p is None else written(p) for name, p in parts.items()}}


def text_embedding() -> Case:
    """Return an embedding of tokens."""
    return next(c for c in harness.bases("embedding") if "vocab_size" in c.config.__dataclass_fields__)


def token_head() -> Case:
    """Return a head that answers at each token."""
    return next(c for c in harness.bases("head") if c.cls.per_token)


def spec_of(
    topology: type[Any],
    attention: Case,
    *,
    position: Case | None = None,
    layers: list[dict[str, Any]] | None = None,
    embedding: Case | None = None,
    head: Case | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a spec of a topology whose stacks have two layers each, or `layers`, and which reads text."""
    base = layer_of(attention, harness.bases("feedforward")[0], harness.bases("norm")[0])
    model: dict[str, Any] = {
        "topology": {"kind": default().full_name(topology), **(options or {})},
        "d_model": D_MODEL,
        "max_seq_len": MAX_SEQ_LEN,
        "embedding": written(embedding or text_embedding()),
        "position": "none" if position is None else written(position),
        "layer": base,
        "layers": [{"repeat": 2}] if layers is None else [{"repeat": 1, "pattern": layers}],
        "norm": written(harness.bases("norm")[0]),
        "head": written(head or token_head()),
    }
    for name, role in topology.stacks.items():
        if role.memory:
            model[name] = {"layer": {"cross_attention": written(attention)}}
    return {"model": model}
