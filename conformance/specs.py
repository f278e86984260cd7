"""Write specs whose every part is chosen by what it declares, by no name, and compose them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..core.component import Part
from ..core.topology import Topology
from ..registry.compose import compose
from ..registry.manager import Registry
from ..registry.spec import Spec, parse_spec
from .cases import D_MODEL, MAX_SEQ_LEN, Case
from .companions import bases, plainest, registry_of, text_embedding, token_head, versatile


def written(case: Case | Part, registry: Registry) -> dict[str, Any]:
    """Return a component and its options as a spec says them."""
    return {"kind": registry.full_name(case.cls), **_options(case.config, registry)}


def _options(config: Any, registry: Registry) -> dict[str, Any]:
    """Return the options that are not at their defaults; an option may be a part, or have options of its own."""
    options = dict[str, Any]()
    for f in dataclasses.fields(config):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if (value := getattr(config, f.name)) != default:
            nested = dataclasses.is_dataclass(value) and not isinstance(value, Part)
            options[f.name] = (
                written(value, registry) if isinstance(value, Part) else _options(value, registry) if nested else value
            )
    return options


class Draft:
    """Write specs around one component: every other part is built in, and can be replaced by its place's name.

    `subject`: the component, whose kind says where it stands. `parts`: what stands elsewhere, by kind; a model has no
    position unless one is given. Where a stack reads another, the attention reads across too.
    """

    def __init__(self, subject: Case, **parts: Case | None) -> None:
        self.registry = registry_of(subject.cls)
        self.parts: dict[str, Case | None] = {
            "topology": bases("topology")[0],
            "attention": versatile(),
            "position": None,
            "norm": bases("norm")[0],
            "feedforward": plainest(bases("feedforward")),
            "embedding": text_embedding(),
            "head": token_head(),
        }
        self.parts |= parts
        if subject.cls.kind in self.parts and subject.cls.kind not in parts:
            self.parts[subject.cls.kind] = subject

    def spec(self, layers: list[dict[str, Any]] | None = None) -> Spec:
        """Return the spec; its stacks have two layers each, or `layers`."""
        parts = {name: "none" if case is None else written(case, self.registry) for name, case in self.parts.items()}
        topology = self.parts["topology"]
        assert topology is not None
        model: dict[str, Any] = {
            "topology": parts["topology"],
            "d_model": D_MODEL,
            "max_seq_len": MAX_SEQ_LEN,
            "embedding": parts["embedding"],
            "position": parts["position"],
            "layer": {"placement": "pre", **{n: parts[n] for n in ("attention", "feedforward", "norm")}},
            "layers": [{"repeat": 2}] if layers is None else [{"repeat": 1, "pattern": layers}],
            "norm": parts["norm"],
            "head": parts["head"],
        }
        for name, role in topology.cls.stacks.items():
            if role.memory:
                model[name] = {"layer": {"cross_attention": parts["attention"]}}
        return parse_spec({"model": model}, registry=self.registry)

    def model(self, layers: list[dict[str, Any]] | None = None, device: str = "cpu") -> Topology:
        """Return the composed model."""
        return compose(self.spec(layers), device)


def needs(topology: Any) -> set[str]:
    """Return the abilities that a topology's stacks ask of their attentions."""
    roles: Mapping[str, Any] = topology.stacks
    found = {"causal" if role.causal else "two_sided" for role in roles.values()}
    return found | ({"cross"} if any(role.memory for role in roles.values()) else set())
