"""Which layers differ: from lists, from numbers, and from several fields at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transom.errors import SpecError
from transom.interop.config import laid_over
from transom.registry.spec import load_spec, parse_spec

FIELDS: dict[str, Any] = {
    "depth": "model.layers.0.repeat",
    "wide": "layers.dense.feedforward.d_ff",
    "step": {"every": "far", "others": "near"},
    "types": {"each": {"far": "far", "near": "near"}, "cases": {"null": {}}},
    "start": {"first": "dense"},
    "sparse": {"listed": "sparse"},
}
LAYERS: dict[str, Any] = {
    "dense": {"feedforward": {"kind": "mlp", "activation": "relu"}},
    "sparse": {"feedforward": {"kind": "experts", "n_experts": 4, "n_active": 2}},
    "near": {"attention": {"kind": "local", "window": 5}},
    "far": {"attention": {"kind": "full"}},
}
DEFAULTS: dict[str, Any] = {"wide": 40, "step": 3, "types": None, "start": 0, "sparse": []}


def family(**changes: Any) -> dict[str, Any]:
    config = {
        "type": "odd", "architectures": {"OddModel": {}}, "fields": FIELDS, "layers": LAYERS, "defaults": DEFAULTS,
    } | changes  # fmt: skip
    return {"extends": "tiny_gpt", "hf": {"modules": {}, "config": config}}


@pytest.fixture
def spec_of(tmp_path: Path) -> Callable[..., Any]:
    """Return what makes a spec of the fields of a config."""
    place = tmp_path / "odd.yaml"
    place.write_text(json.dumps(family()))
    odd = load_spec(place)
    return lambda **config: load_spec(place, laid=laid_over(config, "config.json", odd))


def letters(spec: Any) -> str:
    layers = spec.model.stacks["decoder"].layers
    return " ".join(f"{layer.attention.name[0]}{layer.feedforward.name[0]}" for layer in layers)


@pytest.mark.parametrize(
    ("config", "wanted", "groups"),
    [
        ({"depth": 6}, "lg lg fg lg lg fg", [(2, 3)]),
        ({"depth": 7, "step": 4}, "lg lg lg fg lg lg lg", [(3, 1), (1, 1), (3, 1)]),
        ({"depth": 5, "step": 1, "start": 2}, "fm fm fg fg fg", [(2, 1), (3, 1)]),
        ({"depth": 4, "step": 9, "start": 9}, "lm lm lm lm", [(4, 1)]),
        ({"depth": 4, "step": 2, "start": 1, "sparse": [1, 3]}, "lm fe lg fe", [(1, 4)]),
        ({"depth": 3, "step": 1, "start": 3, "sparse": [2, 0]}, "fe fm fe", [(1, 2), (1, 1)]),
        ({"depth": 3, "step": 1, "types": ["near", "near", "far"]}, "lg lg fg", [(2, 1), (1, 1)]),
    ],
)
def test_fields_choose_layers(
    spec_of: Callable[..., Any], config: dict[str, Any], wanted: str, groups: list[tuple[int, int]]
) -> None:
    spec = spec_of(**config)
    assert letters(spec) == wanted
    found = [(group["repeat"], len(group["pattern"])) for group in spec.resolved["model"]["layers"]]
    assert found == groups


def test_values_go_to_a_kind_of_layers(spec_of: Callable[..., Any]) -> None:
    layers = spec_of(depth=3, start=1, sparse=[2], wide=24).model.stacks["decoder"].layers
    assert [layer.feedforward.config.d_ff for layer in layers] == [24, 344, 344]
    assert layers[0].feedforward.config.activation == "relu"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"depth": 3, "step": 0}, r"step: should be a whole number, 1 or more, not 0"),
        ({"depth": 3, "step": "2"}, r"step: should be a whole number, 1 or more, not '2'"),
        ({"depth": 3, "start": -1}, r"start: should be a whole number, 0 or more, not -1"),
        ({"depth": 3, "sparse": [1, 3]}, r"sparse\.1: 3 is no layer; there are 3, from 0 on"),
        ({"depth": 3, "sparse": 1.5}, r"sparse: 1\.5 is no layer; there are 3, from 0 on"),
        ({"depth": 3, "types": ["far", "fat", "far"]}, r"types\.1: 'fat' is not known to the family \(did you"),
        ({"depth": 3, "types": ["far"]}, "types: should be a list of 3, as depth says, not of 1"),
    ],
)
def test_what_chooses_no_layers_is_refused(spec_of: Callable[..., Any], config: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        spec_of(**config)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"first": "dense", "every": "far"}, "every: a field says in one way which layers differ"),
        ({"first": "dense", "to": "model.d_model"}, "first: goes to the layers, not to an option"),
        ({"to": "model.d_model", "others": "far"}, "others: are those that `first`, `every` or `listed` does not"),
        ({"first": "deep"}, "fields: 'deep' is none of `layers`"),
        ("layers.deep.attention.window", "fields: 'deep' is none of `layers`"),
        ({"to": "model.d_model", "values": "activation"}, "values: 'activation' is no table of names (did you mean"),
    ],
)
def test_a_family_that_chooses_no_kind_is_refused(field: Any, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(family(fields=FIELDS | {"more": field}))
    assert said in str(caught.value)
