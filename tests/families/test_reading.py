"""What a family says of `config.json` in one place: heads, usual fields, options of every head, maps of rotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transom.errors import SpecError
from transom.interop.config import IGNORED, laid_over
from transom.registry.sources import families
from transom.registry.spec import Spec, load_spec
from transom.registry.tables import USUAL

Read = Callable[..., Spec]
MODEL: dict[str, Any] = {
    "topology": "encoder",
    "d_model": 24,
    "max_seq_len": 32,
    "embedding": {"kind": "token", "vocab_size": 41},
    "position": {"kind": "rope", "theta": 500.0},
    "layer": {
        "norm": {"kind": "layer", "eps": 1e-5},
        "attention": {"kind": "full", "n_heads": 2},
        "feedforward": {"kind": "mlp", "d_ff": 36},
    },
    "layers": [{"repeat": 2}],
    "norm": {"kind": "layer", "eps": 1e-5},
    "head": {
        "words": {"kind": "lm", "tied": True, "transform": "gelu", "norm": {"kind": "layer", "eps": 1e-5}},
        "next": {"kind": "classifier", "n_classes": 2, "pool": "first"},
    },
}
HEADS: dict[str, Any] = {
    "classes": {"kind": "classifier", "n_classes": 2, "pool": "first", "transform": "tanh"},
    "tokens": {"kind": "lm", "vocab_size": 2, "norm": {"kind": "layer", "eps": 1e-5}},
    "spans": {"kind": "lm", "vocab_size": 2},
}
ARCHITECTURES: dict[str, Any] = {
    "OddModel": {},
    "OddBody": {"objective": "none", "heads": []},
    "OddClasses": {"heads": ["classes"]},
    "OddBoth": {"heads": ["words", "tokens"], "model": {"head": {"words": {"tied": False}}}},
    "OddAlias": "OddClasses",
    "OddSpans": {"heads": ["spans"]},
    "*Tokens": {"heads": ["tokens"]},
    "FarTokens": {"model": {"max_seq_len": 64}},
    "OwnTokens": {"heads": ["spans", "tokens"]},
}


def family(**changes: Any) -> dict[str, Any]:
    """Return a family; `changes` go to its `hf.config`."""
    config = {"type": "odd", "architectures": ARCHITECTURES, "heads": HEADS} | changes
    return {"model": MODEL, "objective": "masked_lm", "hf": {"modules": {}, "config": config}}


@pytest.fixture
def reads(tmp_path: Path) -> Callable[..., Read]:
    """Return what makes, of a family's `hf.config`, what reads the fields of a file."""

    def made(written: dict[str, Any] | None = None, **changes: Any) -> Read:
        place = tmp_path / "odd.yaml"
        place.write_text(json.dumps(family(**changes) if written is None else written))
        spec = load_spec(place)
        return lambda **fields: load_spec(place, laid=laid_over(fields, "config.json", spec))

    return made


def heads(spec: Spec) -> list[str]:
    return list(spec.model.heads)


def option(spec: Spec, head: str, name: str) -> Any:
    return getattr(spec.model.heads[head].config, name)


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [
        (None, ["words", "next"]),
        ("OddModel", ["words", "next"]),
        ("OddBody", []),
        ("OddClasses", ["classes"]),
        ("OddAlias", ["classes"]),
        ("OddBoth", ["words", "tokens"]),
        ("OddSpans", ["spans"]),
        ("NearTokens", ["tokens"]),
        ("FarTokens", ["tokens"]),
        ("OwnTokens", ["tokens", "spans"]),
    ],
)
def test_an_architecture_has_the_heads_that_it_names(
    reads: Callable[..., Read], architecture: str | None, wanted: list[str]
) -> None:
    """Those of `model.head` unless it names some; of a pattern and a name, the name's counts where it says any."""
    spec = reads()(**({} if architecture is None else {"architectures": [architecture]}))
    assert heads(spec) == wanted
    assert (spec.objective is None) == (architecture == "OddBody")
    assert spec.model.max_seq_len == (64 if architecture == "FarTokens" else 32)
    if architecture == "OddBoth":
        assert option(spec, "words", "tied") is False


def test_a_head_is_as_wide_as_a_file_has_labels(reads: Callable[..., Read]) -> None:
    read = reads()
    for architecture, head, name in (("OddClasses", "classes", "n_classes"), ("NearTokens", "tokens", "vocab_size")):
        for labels, wanted in ((None, 2), ({"0": "a", "1": "b", "2": "c"}, 3), (["a", "b", "c", "d", "e"], 5)):
            fields = {} if labels is None else {"id2label": labels}
            assert option(read(architectures=[architecture], **fields), head, name) == wanted
    assert option(read(architectures=["OddSpans"], id2label={"0": "a"}), "spans", "vocab_size") == 2
    with pytest.raises(SpecError, match=r"config\.json: id2label: should be a map or a list, not 3"):
        read(architectures=["OddClasses"], id2label=3)
    assert heads(reads(heads={"spans": HEADS["spans"]}, architectures={"OddModel": {}})(id2label=3)) == [
        "words",
        "next",
    ]


def test_a_head_without_a_name_is_taken_away(reads: Callable[..., Read]) -> None:
    written = family(architectures={"A": {}, "B": {"heads": []}}, heads={}, usual=["tie_word_embeddings"])
    written["model"] = MODEL | {"head": {"kind": "lm", "tied": True}}
    read = reads(written)
    assert option(read(architectures=["A"], tie_word_embeddings=False), "head", "tied") is False
    assert heads(read(architectures=["B"], tie_word_embeddings=False)) == []


def test_a_family_without_a_head_gets_those_of_its_architectures(reads: Callable[..., Read]) -> None:
    written = family(architectures={"A": {}, "B": {"heads": ["tokens"]}})
    written["model"] = MODEL | {"head": "none"}
    read = reads(written)
    assert heads(read(architectures=["A"])) == []
    assert option(read(architectures=["B"], id2label=["a", "b", "c"]), "tokens", "vocab_size") == 3


def test_a_field_goes_to_every_head_that_writes_the_option(reads: Callable[..., Read]) -> None:
    fields = {
        "act": {"to": "model.head.*.transform", "values": "activations"},
        "eps": ["model.norm.eps", "model.head.*.norm.eps"],
    }
    read = reads(fields=fields)
    both = read(architectures=["OddBoth"], act="relu", eps=0.5)
    assert (option(both, "words", "transform"), option(both, "tokens", "transform")) == ("relu", None)
    assert [option(both, name, "norm").config.eps for name in ("words", "tokens")] == [0.5, 0.5]
    one = read(architectures=["OddClasses"], act="silu", eps=0.25)
    assert option(one, "classes", "transform") == "silu"
    assert one.dropped == (), "what other heads write is not set"
    assert one.model.stacks["encoder"].norm.config.eps == 0.25  # type: ignore[union-attr]
    assert option(read(act="relu", eps=0.5), "next", "transform") is None
    with pytest.raises(SpecError, match=r"config\.json: act: 'misch' is not known to the family \(did you mean 'mish'"):
        read(act="misch", eps=0.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fields": {"a": "model.head.*.nrom.eps"}},
         "hf.config.fields.a: 'model.head.*.nrom.eps' is an option that no head of the family writes"),
        ({"fields": {"a": "model.head.word.tied"}},
         "hf.config.fields.a: the family has no head 'word' (did you mean 'words'?)"),
        ({"architectures": {"OddModel": {"heads": ["words", "token"]}}},
         "hf.config.architectures.OddModel.heads: the family has no head 'token' (did you mean 'tokens'?)"),
    ],
)  # fmt: skip
def test_a_family_that_speaks_of_a_head_that_it_lacks_is_refused(
    reads: Callable[..., Read], changes: dict[str, Any], said: str
) -> None:
    """At its place in the family's file: line and column."""
    with pytest.raises(SpecError) as caught:
        reads(**changes)()
    where, colon, rest = str(caught.value).partition(": ")
    assert rest.split("\n")[0] == said
    assert colon
    assert Path(where.split(":")[0]).name == "odd.yaml"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fields": {"a": "model.*.eps"}}, "fields.a: 'model.*.eps' is no path: * stands for heads alone"),
        ({"fields": {"a": {"to": "model.head.*.*.eps"}}}, "fields.a.to: 'model.head.*.*.eps' is no path: * stands"),
        ({"heads": {"classes": {"kind": "classifyer"}}}, "heads.classes.kind: no head named 'classifyer'"),
        ({"heads": {"classes": {"kind": "lm", "vocab_sise": 2}}}, "unknown option 'vocab_sise'"),
        ({"architectures": {"OddModel": {"haeds": []}}}, "unknown option 'haeds' (did you mean 'heads'?)"),
        ({"architectures": {"OddModel": "OddBody"}}, "architectures: OddModel is like 'OddBody', which says nothing"),
        ({"architectures": {"A": "B", "B": "A"}}, "architectures: A is like 'A', which says nothing"),
        ({"usual": ["hidden_sise"]}, "usual: 'hidden_sise' is no usual name of a field (did you mean 'hidden_size'?)"),
        ({"defaults": {"hidden_size": 2}}, "defaults: 'hidden_size' is none of `fields`"),
        ({"fields": {"a": {"to": "model.d_model", "joined": ""}}}, "joined: is what stands between names"),
        ({"fields": {"a": {"to": "model.d_model", "joined": "|", "counted": True}}}, "joined: is what stands between"),
        ({"fields": {"a": {"first": "near"}}, "layers": {"near": {}}},
         "fields: 'a' chooses layers, and none goes to model.layers.0.repeat"),
        ({"rotations": {"rope": {"to": "model.position", "when": {"alibi": False}}}}, "fields: 'alibi' of a `when` is"),
    ],
)  # fmt: skip
def test_a_family_that_is_written_wrong_is_refused(
    reads: Callable[..., Read], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError) as caught:
        reads(**changes)
    assert said in str(caught.value)


def test_usual_fields_go_where_they_go_in_most_families(reads: Callable[..., Read]) -> None:
    names = ["vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads",
             "intermediate_size", "hidden_act", "layer_norm_eps", "rope_theta", "tie_word_embeddings", "attention_bias",
             "mlp_bias", "head_dim"]  # fmt: skip
    values = [43, 16, 30, 3, 3, 44, "gelu_new", 0.125, 250.0, False, True, True, 12]
    read = reads(usual=names, defaults={"rope_theta": 9.0}, fields={"mlp_bias": None})
    fields = dict(zip(names, values, strict=True))
    with pytest.raises(SpecError, match=r"mlp_bias: is not known to the family"):
        read(**fields)
    del fields["mlp_bias"]
    model = read(**fields).model
    stack = model.stacks["encoder"]
    layer: Any = stack.layers[0]
    assert (model.d_model, model.max_seq_len, len(stack.layers)) == (30, 16, 3)
    assert stack.embedding.config.vocab_size == 43  # type: ignore[union-attr]
    assert (layer.attention.config.n_heads, layer.attention.config.head_dim) == (3, 12)
    assert layer.attention.config.bias is True
    assert (layer.feedforward.config.d_ff, layer.feedforward.config.activation) == (44, "gelu_tanh")
    assert layer.norm.config.eps == stack.norm.config.eps == 0.125  # type: ignore[union-attr]
    assert stack.position[0].config.theta == 250.0  # type: ignore[attr-defined]
    assert model.heads["words"].config.tied is False  # type: ignore[attr-defined]
    del fields["rope_theta"]
    assert read(**fields).model.stacks["encoder"].position[0].config.theta == 9.0  # type: ignore[attr-defined]
    del fields["hidden_size"]
    with pytest.raises(SpecError, match=r"hidden_size: is missing: the family knows no default of it"):
        read(**fields)


def test_a_usual_field_is_one_that_some_family_has() -> None:
    specs: list[Any] = [load_spec(place) for place in families().values()]
    assert set().union(*(spec.hf.config.usual for spec in specs)) == USUAL.keys()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("b|a", ("a", "b")), (["b", "a"], ("a", "b")), ("a", ("a",)), (["b"], ("b",)), (None, ()), ([], ()),
    ],
)  # fmt: skip
def test_names_that_a_text_joins_are_a_list(reads: Callable[..., Read], given: Any, wanted: tuple[str, ...]) -> None:
    known = [[], ["a"], ["b"], ["a", "b"]]
    cases = {json.dumps(names): {"model": {"d_model": 2 * size}} for size, names in enumerate(known, 1)}
    spec = reads(fields={"types": {"joined": "|", "cases": cases}})(types=given)
    assert spec.model.d_model == 2 * (known.index(list(wanted)) + 1)


def test_names_of_which_one_is_not_known_are_refused(reads: Callable[..., Read]) -> None:
    field = {"joined": "|", "cases": {'["a"]': {}}}
    with pytest.raises(
        SpecError, match=r"config\.json: types: 'a\|c' is not known to the family \(allowed: \[\"a\"\]\)"
    ):
        reads(fields={"types": field})(types="a|c")


def test_a_field_may_say_what_it_is_by_default(reads: Callable[..., Read]) -> None:
    fields = {"wide": {"to": "model.d_model", "default": 26}, "far": {"to": "model.max_seq_len", "when": {"wide": 26}}}
    assert reads(fields=fields)(far=8).model.d_model == 26
    assert reads(fields=fields)(far=8).model.max_seq_len == 8
    assert reads(fields=fields, defaults={"wide": 28})(far=8).model.d_model == 28
    nothing = {"wide": {"to": "model.d_model", "cases": {"null": {}}, "default": None}}
    assert reads(fields=nothing)().model.d_model == 24


def test_a_map_of_a_rotation_goes_to_its_position(reads: Callable[..., Read]) -> None:
    """All kinds, each with the fields that it has; `fields` goes before."""
    given: dict[str, Any] = {
        "rope_theta": 90.0, "factor": 4.0, "original_max_position_embeddings": 16, "low_freq_factor": 0.5,
        "high_freq_factor": 3.0,
    }  # fmt: skip
    depth = {"max_position_embeddings": {"to": "model.max_seq_len", "default": 32}}
    read = reads(rotations={"rope": "model.position"}, fields=depth)
    plain: Any = read(rope={"rope_type": "default", "rope_theta": 90.0}).model.stacks["encoder"].position[0].config
    assert (plain.theta, plain.scaling) == (90.0, None)
    found: Any = read(rope=given | {"rope_type": "llama3"}).model.stacks["encoder"].position[0].config
    scaling = found.scaling
    assert (scaling.kind, scaling.factor, scaling.trained, scaling.slow, scaling.fast) == ("llama3", 4.0, 16, 0.5, 3.0)
    linear: Any = read(rope={"rope_type": "linear", "factor": 3.0})
    assert linear.model.stacks["encoder"].position[0].config.scaling.trained is None
    first = reads(rotations={"rope": "model.position"}, fields=depth | {"rope.rope_theta": "model.norm.eps"})
    laid: Any = first(rope={"rope_type": "default", "rope_theta": 90.0})
    assert laid.model.stacks["encoder"].position[0].config.theta == 500.0
    assert laid.model.stacks["encoder"].norm.config.eps == 90.0


def test_the_longest_text_of_a_dynamic_rotation_is_another_field(reads: Callable[..., Read]) -> None:
    fields = {"max_position_embeddings": "model.max_seq_len", "bare": {"to": "model.d_model", "default": 24}}
    rotation = {"to": "model.position", "when": {"bare": 24}}
    read = reads(fields=fields, rotations={"rope": rotation})
    rope = {"rope_type": "dynamic", "factor": 2.0}
    found: Any = read(max_position_embeddings=64, rope=rope)
    assert found.model.stacks["encoder"].position[0].config.scaling.trained == 64
    other: Any = read(max_position_embeddings=64, rope=rope, bare=30)
    assert other.model.stacks["encoder"].position[0].config.scaling is None


def test_a_rotation_that_is_not_known_is_refused_at_its_place(reads: Callable[..., Read]) -> None:
    depth = {"max_position_embeddings": {"to": "model.max_seq_len", "default": 32}}
    read = reads(rotations={"rope": "model.position"}, fields=depth)
    with pytest.raises(SpecError, match=r"config\.json: rope\.rope_type: 'yarm' is not known to the family \(did you"):
        read(rope={"rope_type": "yarm"})
    with pytest.raises(SpecError, match=r"config\.json: rope\.rope_thet: is not known to the family"):
        read(rope={"rope_type": "default", "rope_thet": 90.0})
    with pytest.raises(SpecError, match=r"config\.json: rope: is not known to the family"):
        reads(rotations={"rope": None}, fields=depth)(rope={"rope_theta": 90.0})


@pytest.mark.parametrize("name", families())
def test_a_family_ignores_nothing_that_all_do(name: str) -> None:
    spec: Any = load_spec(families()[name])
    assert not set(spec.hf.config.ignored) & set(IGNORED)


def test_a_field_under_two_names_is_refused_where_they_differ(reads: Callable[..., Read]) -> None:
    read = reads(fields={"wide": "model.d_model"}, renamed={"d_odd": "wide", "n_odd": "wide"})
    for fields in ({"d_odd": 36}, {"wide": 36}, {"wide": 36, "d_odd": 36, "n_odd": 36}):
        assert read(**fields).model.d_model == 36
    for fields in ({"wide": 36, "d_odd": 48}, {"d_odd": 36, "n_odd": 48}):
        first, second = fields
        said = f"config.json: {second}: is 48, and 36 by {first}, which is the same field: leave one of them out"
        with pytest.raises(SpecError) as caught:
            read(**fields)
        assert said in str(caught.value)


def test_the_two_names_of_a_rotations_kind_are_one_field() -> None:
    llama = load_spec(families()["llama"])
    sizes = {
        "vocab_size": 91,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }
    sizes["max_position_embeddings"] = 128
    scaling = {"rope_type": "linear", "factor": 2.0}
    both = laid_over({**sizes, "rope_scaling": scaling | {"type": "linear"}}, "config.json", llama)
    assert load_spec(families()["llama"], laid=both).resolved["model"]["position"]["scaling"]["kind"] == "linear"
    with pytest.raises(SpecError, match=r"rope_scaling\.type: is 'dynamic', and 'linear' by rope_scaling\.rope_type"):
        laid_over({**sizes, "rope_scaling": scaling | {"type": "dynamic"}}, "config.json", llama)
