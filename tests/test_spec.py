"""Specs that are right: what they become, how they extend, swap, inherit and resolve, and that they survive a trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from yaml.reader import Reader

from transom.errors import SpecError
from transom.registry.sources import bundled
from transom.registry.spec import Spec, dump_spec, load_spec, parse_spec

GPT = """\
name: tiny-gpt
model:
  topology: decoder
  d_model: 96
  max_seq_len: 77
  embedding: {kind: token, vocab_size: 301}
  position: {kind: rope, theta: 10000.0}
  layer:
    placement: pre
    norm: rms
    attention: {kind: full, n_heads: 6, n_kv_heads: 2}
    feedforward: {kind: glu, d_ff: 130, activation: silu}
  layers:
    - repeat: 3
      pattern:
        - {attention: {kind: local, window: 13}}
        - {}
  norm: rms
  head: {kind: lm, tied: true}
objective: causal_lm
data: {kind: text, source: stdlib, seq_len: 33, tokenizer: {kind: bpe, vocab_size: 301}}
train: {steps: 10, batch_size: 3, lr: 5.0e-3, warmup: 2, schedule: cosine, precision: fp32, seed: 7, eval_every: 5}
export: {target: ort, opset: 24, precision: fp32, quantize: none}
"""
PAIR = """\
model:
  topology: encoder_decoder
  d_model: 32
  max_seq_len: 19
  embedding: {kind: token, vocab_size: 50}
  position: none
  layer: {norm: rms, attention: {kind: full, n_heads: 4}, feedforward: {kind: mlp, d_ff: 64}}
  layers: [{repeat: 2}]
  norm: layer
  head: lm
  encoder: {position: [learned, alibi], layers: [{repeat: 3}]}
  decoder: {layer: {norm: layer, cross_attention: {kind: full, n_heads: 2}}}
"""


def names(spec: Spec, stack: str = "decoder") -> list[str]:
    return [layer.attention.name if layer.attention else "none" for layer in spec.model.stacks[stack].layers]


def test_the_whole_example() -> None:
    spec = parse_spec(GPT)
    stack = spec.model.stacks["decoder"]
    assert (spec.name, spec.model.d_model, spec.model.max_seq_len) == ("tiny-gpt", 96, 77)
    assert names(spec) == ["local", "full"] * 3
    assert stack.layers[0].attention is not None
    config = stack.layers[0].attention.config
    assert (config.window, config.n_heads, config.n_kv_heads) == (13, 6, 2)
    assert stack.embedding is not None
    assert stack.embedding.config.vocab_size == 301
    assert [part.name for part in stack.position] == ["rope"]
    assert {name: head.name for name, head in spec.model.heads.items()} == {"head": "lm"}
    assert spec.objective is not None
    assert spec.data is not None
    assert spec.data.config.tokenizer.vocab_size == 301
    assert (spec.train.lr, spec.train.warmup, spec.train.betas) == (5e-3, 2, (0.9, 0.95))
    assert spec.export.opset == 24
    assert spec.dropped == ()


def test_stacks_inherit_and_override() -> None:
    spec = parse_spec(PAIR)
    encoder, decoder = spec.model.stacks["encoder"], spec.model.stacks["decoder"]
    assert list(spec.model.stacks) == ["encoder", "decoder"]
    assert (len(encoder.layers), len(decoder.layers)) == (3, 2)
    assert [part.name for part in encoder.position] == ["learned", "alibi"]
    assert decoder.position == ()
    assert encoder.layers[0].cross_attention is None
    layer = decoder.layers[1]
    assert layer.cross_attention is not None
    assert layer.norm is not None
    assert layer.attention is not None
    assert (layer.cross_attention.config.n_heads, layer.norm.name, layer.attention.config.n_heads) == (2, "layer", 4)


@pytest.mark.parametrize("text", [GPT, PAIR])
@pytest.mark.parametrize("changes", [[], ["model.layer.attention.kind=linear", "model.layers=[{repeat: 5}]"]])
def test_resolved_alone_rebuilds_the_spec(text: str, changes: list[str]) -> None:
    spec = parse_spec(text, changes)
    written = dump_spec(spec)
    again = parse_spec(written)
    assert again == spec
    assert again.resolved == spec.resolved
    assert again.dropped == ()
    assert parse_spec(spec.resolved) == spec
    assert parse_spec(written.replace("\n", "\r\n")) == spec
    assert yaml.safe_load(written) == spec.resolved  # other readers of YAML understand the same


def test_bundled_specs_are_found_by_name_and_are_right() -> None:
    assert "tiny_gpt" in bundled()
    for name in bundled():
        assert parse_spec(load_spec(name).resolved) == load_spec(name), name


def test_a_swap_keeps_what_both_kinds_declare_and_tells_what_went() -> None:
    local = ["model.layer.attention.kind=local", "model.layer.attention.window=9", "model.layers=[{repeat: 1}]"]
    spec = parse_spec(GPT, [*local, "model.layer.attention.kind=full"])
    attention = spec.model.stacks["decoder"].layers[0].attention
    assert attention is not None
    assert (attention.name, attention.config.n_heads) == ("full", 6)
    assert spec.dropped == ("model.layer.attention.window: 9 (override 2) went with local, which is now full",)
    assert spec == parse_spec(GPT, ["model.layers=[{repeat: 1}]"])


def test_a_swap_in_short_form_and_to_none_and_back() -> None:
    short = parse_spec(GPT, ["model.layer.norm.eps=1e-3", "model.layer.norm=layer"])
    norm = short.model.stacks["decoder"].layers[0].norm
    assert norm is not None
    assert (norm.name, norm.config.eps) == ("layer", 1e-3)
    for none in ("model.layer.feedforward=none", "model.layer.feedforward.kind=none"):
        assert parse_spec(GPT, [none]).model.stacks["decoder"].layers[4].feedforward is None
    back = parse_spec(GPT, ["model.position=none", "model.position.kind=alibi"])
    assert [part.name for part in back.model.stacks["decoder"].position] == ["alibi"]


def test_options_that_no_layer_takes_are_told() -> None:
    spec = parse_spec(GPT.replace("        - {}\n", "").replace("window: 13}", "window: 13, n_kv_heads: 3}"))
    assert len(spec.dropped) == 2
    assert spec.dropped[1].startswith("model.layer.attention.n_kv_heads: 2 (<text>:11:53) is taken by no layer")


def test_options_that_no_stack_takes_are_told() -> None:
    resolved = dump_spec(parse_spec(PAIR))
    spec = parse_spec(resolved, ["model.layer.dropout=0.5", "model.norm=rms"])
    why = "is taken by no stack: each has its own"
    assert spec.dropped == (
        f"model.layer.dropout: 0.5 (override 1) {why}",
        f"model.norm: 'rms' (override 2) {why}",
    )
    assert spec == parse_spec(PAIR)


def test_overrides_reach_everything() -> None:
    changes = ["model.layers[0].repeat=2", "train.lr=1e-3", "train.freeze=[a*, b]", "train.init=runs/x", "name='010'"]
    spec = parse_spec(GPT, [*changes, "model.layers.0.pattern.1.dropout=0.5", "train.init="])
    assert names(spec) == ["local", "full"] * 2
    assert [layer.dropout for layer in spec.model.stacks["decoder"].layers] == [0.0, 0.5] * 2
    assert (spec.train.lr, spec.train.freeze, spec.train.init, spec.name) == (1e-3, ("a*", "b"), None, "010")
    assert spec.where("train.lr") == "override 2"
    assert parse_spec(dump_spec(spec)) == spec


def test_positions_of_a_layer_are_its_own_the_stacks_or_none() -> None:
    pattern = "[{pattern: [{}, {position: none}, {position: [learned, alibi]}, {position: alibi}, {position: null}]}]"
    layers = parse_spec(GPT, [f"model.layers={pattern}"]).model.stacks["decoder"].layers
    found = [None if layer.position is None else [part.name for part in layer.position] for layer in layers]
    assert found == [None, [], ["learned", "alibi"], ["alibi"], None]


def test_heads_by_name() -> None:
    heads = "head: {words: {kind: lm, tied: true}, topic: {kind: classifier, n_classes: 3}}"
    spec = parse_spec(GPT.replace("head: {kind: lm, tied: true}", heads), ["model.head.topic.n_classes=5"])
    assert {name: head.name for name, head in spec.model.heads.items()} == {"words": "lm", "topic": "classifier"}
    assert spec.model.heads["topic"].config.n_classes == 5
    assert parse_spec(spec.resolved) == spec
    none = parse_spec(GPT, ["model.head=none"])
    assert none.model.heads == {}
    assert parse_spec(none.resolved) == none


def test_parts_within_options() -> None:
    spec = parse_spec(GPT, ["model.layer.attention.qk_norm={kind: rms, eps: 0.25}"])
    attention = spec.model.stacks["decoder"].layers[1].attention
    assert attention is not None
    assert attention.config.qk_norm.config.eps == 0.25
    assert parse_spec(spec.resolved) == spec


def test_files_extend_files_and_bundled_specs(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "base.yaml").write_text(GPT)
    (tmp_path / "far" / "middle.yml").write_text("extends: base.yaml\nmodel: {d_model: 48}\nobjective: none\n")
    (tmp_path / "child.yaml").write_text(
        "extends: far/middle.yml\nmodel: {layer: {attention: linear}}\ntrain: {seed: 3}\n"
    )
    spec = load_spec(tmp_path / "child.yaml")
    assert (spec.name, spec.model.d_model, spec.objective, spec.train.seed) == ("tiny-gpt", 48, None, 3)
    assert names(spec) == ["local", "linear"] * 3
    assert spec.where("train.seed") == f"{tmp_path}/child.yaml:3:15"
    assert spec.where("model.d_model") == f"{tmp_path}/far/middle.yml:2:18"
    assert spec.where("model.stacks.decoder.layers.5.attention.n_heads") == f"{tmp_path}/far/base.yaml:11:38"
    named = parse_spec("extends: tiny_gpt\nname: mine\n")
    assert named.model == load_spec("tiny_gpt").model
    assert named.name == "mine"


def test_a_spec_without_a_name_has_its_files(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(GPT.replace("name: tiny-gpt\n", ""))
    assert load_spec(str(tmp_path / "other.yaml")).name == "other"


def test_places_and_paths() -> None:
    spec = parse_spec(GPT)
    mark = spec.mark("model.stacks.decoder.layers.2.attention.window")
    assert (str(mark), mark.path) == ("<text>:16:45", "model.layers.0.pattern.0.attention.window")
    assert spec.mark("model.stacks.decoder.layers.2.attention.bias").path == "model.layers.0.pattern.0.attention"
    assert spec.mark("model.heads.head.tied").path == "model.head.tied"
    assert str(spec.problem("train.lr", "is high")) == "<text>:22:39: train.lr: is high"
    assert spec.where("train.nothing") == spec.where("train")


def test_references() -> None:
    text = GPT.replace("name: tiny-gpt", 'name: "x${train.seed}-${model.d_model}-${model.head.tied}"')
    text = text.replace("d_ff: 130", 'd_ff: "${model.d_model}"').replace("seed: 7", 'seed: "${model.layers.0.repeat}"')
    text = text.replace("  norm: rms\n  head", "  norm: ${model.layer.norm}\n  head").replace(
        " norm: rms", " norm: {kind: layer, eps: 1}"
    )
    spec = parse_spec(text)
    stack = spec.model.stacks["decoder"]
    assert (spec.name, spec.train.seed) == ("x3-96-true", 3)
    assert stack.norm is not None
    assert (stack.norm.name, stack.norm.config.eps) == ("layer", 1.0)
    assert stack.layers[3].feedforward is not None
    assert stack.layers[3].feedforward.config.d_ff == 96
    assert "${" not in dump_spec(spec)


def test_anchors_and_merge_keys() -> None:
    text = GPT.replace("norm: rms\n    attention", "norm: &n {kind: layer, eps: 0.5}\n    attention")
    text = text.replace("  norm: rms\n  head", "  norm: {<<: *n, eps: 0.125}\n  head")
    stack = parse_spec(text).model.stacks["decoder"]
    assert stack.norm is not None
    assert (stack.norm.name, stack.norm.config.eps) == ("layer", 0.125)
    assert stack.layers[0].norm is not None
    assert stack.layers[0].norm.config.eps == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("2E+1", 20.0), (".5", 0.5), ("5.", 5.0), ("-0", 0.0), ("3", 3.0), ("1_0.5", None), ("'3'", None)],
)
def test_numbers(text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(SpecError):
            parse_spec(GPT, [f"train.weight_decay={text}"])
    else:
        found = parse_spec(GPT, [f"train.weight_decay={text}"]).train.weight_decay
        assert (type(found), found) == (float, value)


@given(st.text(max_size=30).filter(str.strip))
def test_any_name_survives(name: str) -> None:
    given: dict[str, Any] = {**yaml.safe_load(GPT), "name": name}
    if "${" in name or Reader.NON_PRINTABLE.search(name):
        with pytest.raises(SpecError):
            parse_spec(given)
    else:
        spec = parse_spec(given)
        assert spec.name == name
        assert parse_spec(dump_spec(spec)) == spec


def test_named_heads_stand_where_there_was_none() -> None:
    """Options alone make no head: they are told as dropped."""
    base = {"extends": "tiny_gpt", "model": {"head": "none"}, "objective": "none"}
    spec = parse_spec(base, ["model.head={words: {kind: lm, tied: true}, classes: none}"])
    assert list(spec.model.heads) == ["words"]
    assert spec.dropped == ()
    left = parse_spec(base, ["model.head.words.tied=true"])
    assert not left.model.heads
    assert [note.split(":")[0] for note in left.dropped] == ["model.head.words"]
