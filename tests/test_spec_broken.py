"""Three hundred specs that are wrong, by hand and by dice: each is refused with its file, line and column."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from transom.registry.marks import BrokenSpec
from transom.registry.spec import load_spec, parse_spec

GOOD = Path(__file__).with_name("good.yaml").read_text()
# What is changed in GOOD (each text is there once), and how the whole message then begins after the file's name.
BY_HAND = [
    ("topology: decoder", "topology: decodr", "3:13: model.topology: no topology named 'decodr' (did you mean"),
    ("topology: decoder", "topology: rope", "3:13: model.topology: no topology named 'rope' ('rope' is a position)"),
    ("topology: decoder", "topology: none", "3:13: model.topology: no topology named 'none'"),
    ("topology: decoder", "topology: {kind: decoder, depth: 3}", "3:29: model.topology.depth: unknown option 'depth'"),
    ("topology: decoder", "topology: [decoder]", "3:13: model.topology: should be a topology: its kind, or a map with"),
    ("topology: decoder", "topology:", "3:12: model.topology: should be a topology: its kind, or a map with"),
    ("  topology: decoder\n", "", "3:3: model.topology: is missing: it should be a topology: its kind,"),
    ("d_model: 96", "d_modl: 96", "3:3: model.d_model: is missing: it should be a whole number"),
    ("d_model: 96", "d_model: 96.0", "4:12: model.d_model: should be a whole number, not the number 96.0:"),
    ("d_model: 96", "d_model: '96'", "4:12: model.d_model: should be a whole number, not the text '96':"),
    ("d_model: 96", "d_model: 0", "4:12: model.d_model: must be at least 1, not 0"),
    ("d_model: 96", "d_model: true", "4:12: model.d_model: should be a whole number, not the truth value"),
    ("d_model: 96", "d_model: 096", "4:12: model.d_model: 096 without quotes is a number to some YAML"),
    ("d_model: 96", "d_model: 9_6", "4:12: model.d_model: 9_6 without quotes is 96 to some YAML readers:"),
    ("d_model: 96", "d_model: 0x60", "4:12: model.d_model: 0x60 without quotes is 96 to some YAML readers:"),
    ("d_model: 96", "d_model: ???", "4:12: model.d_model: ??? stands for a value: write one"),
    ("d_model: 96", "d_model: 96\n  d_model: 96", "5:3: model.d_model: 'd_model' is given twice; first in line 4"),
    ("d_model: 96", "d_model: [96]", "4:12: model.d_model: should be a whole number, not a list of 1"),
    ("d_model: 96", "d_model: 12:30:45", "4:12: model.d_model: 12:30:45 without quotes is 45045 to some YAML"),
    ("d_model: 96", "d_model: ${model.width}", "4:12: model.d_model: ${model.width}: 'model' has no 'width'"),
    ("d_model: 96", "d_model: ${model.d_model}", "4:12: model.d_model: a circle of references: model.d_model ->"),
    ("d_model: 96", "d_model: ${oc.env:HOME}", "4:12: model.d_model: '${oc.env:HOME}': only ${a.b} is possible, with"),
    (
        "d_model: 96",
        "d_model: ${.max_seq_len}",
        "4:12: model.d_model: '${.max_seq_len}': only ${a.b} is possible, with",
    ),
    ("d_model: 96", "d_model: ${model[max_seq_len]}", "4:12: model.d_model: '${model[max_seq_len]}': only ${a.b} is"),
    ("d_model: 96", "d_model: ${", "4:12: model.d_model: '${': a reference is written ${a.b}, with the"),
    ("d_model: 96", "d_model: 9${train.steps}", "4:12: model.d_model: should be a whole number, not the text '910':"),
    ("d_model: 96", "d_model: ${model.layer}", "4:12: model.d_model: should be a whole number, not a map"),
    ("max_seq_len: 77", "max_seq_len: -1", "5:16: model.max_seq_len: must be at least 1, not -1"),
    (
        "{kind: token, vocab_size: 301}",
        "{kind: token}",
        "6:14: model.embedding.vocab_size: is missing: it should be a whole",
    ),
    (
        "{kind: token, vocab_size: 301}",
        "{kind: token, vocab_size: 0}",
        "6:40: model.embedding.vocab_size: 0 is not a number of tokens; at",
    ),
    ("{kind: token, vocab_size: 301}", "{vocab_size: 301}", "6:14: model.embedding.kind: is missing: which embedding?"),
    (
        "{kind: token, vocab_size: 301}",
        "{kind: token, vocab_size: 301",
        "7:11: not valid YAML",
    ),
    (
        "{kind: token, vocab_size: 301}",
        "{kind: acme/token, vocab_size: 301}",
        "6:21: model.embedding.kind: no installed package 'acme' brings",
    ),
    (
        "{kind: token, vocab_size: 301}",
        "{kind: transom/token, vocab_size: 301}",
        "6:21: model.embedding.kind: built-in components have bare names:",
    ),
    (
        "{kind: token, vocab_size: 301}",
        "{kind: 5, vocab_size: 301}",
        "6:21: model.embedding.kind: should be the name of a component, not 5",
    ),
    ("{kind: token, vocab_size: 301}", "5", "6:14: model.embedding: should be an embedding: its kind, or a map"),
    ("theta: 10000.0", "theta: .nan", "7:33: model.position.theta: should be a finite number, not nan"),
    ("theta: 10000.0", "theta: big", "7:33: model.position.theta: should be a number, not the text 'big'"),
    ("theta: 10000.0", "thet: 10000.0", "7:26: model.position.thet: unknown option 'thet' (did you mean"),
    (
        "position: {kind: rope, theta: 10000.0}",
        "position: [rope, nope]",
        "7:20: model.position.1: no position named 'nope'",
    ),
    (
        "position: {kind: rope, theta: 10000.0}",
        "position: null",
        "7:13: model.position: should be a position: its kind, or a map with",
    ),
    ("placement: pre", "placement: prae", "9:16: model.layer.placement: should be pre, post, sandwich, parallel or"),
    ("placement: pre", "placement: yes", "9:16: model.layer.placement: yes without quotes is true to some YAML"),
    ("    norm: rms\n", "    norm:\n", "10:10: model.layer.norm: should be a norm: its kind, or a map with"),
    ("    norm: rms\n", "", "15:11: model.layers.0.pattern.0.norm: is missing: it should be a"),
    ("    norm: rms\n", "    norm: rns\n", "10:11: model.layer.norm: no norm named 'rns' (did you mean 'rms'?)"),
    ("    norm: rms\n", "   norm: rms\n", "10:4: not valid YAML"),
    ("    norm: rms\n", "\tnorm: rms\n", "10:1: not valid YAML"),
    ("    norm: rms\n", "    norm: *n\n", "10:11: model.layer.norm: an alias to an anchor that does not exist"),
    ("    norm: rms\n", "    norm: &n [*n]\n", "10:15: model.layer.norm.0: an alias to the value that it stands in"),
    (
        "    norm: rms\n",
        "    norm: !!python/name:os.system\n",
        "10:11: model.layer.norm: tags such as !!python or !!str are refused:",
    ),
    ("    norm: rms\n", "    norm: {kind: none, eps: 1}\n", "10:11: model.layer.norm: none takes no options"),
    (
        "n_heads: 6, n_kv_heads: 2",
        "n_heads: 6, n_kv_heads: 4",
        "11:53: model.layer.attention.n_kv_heads: 4 key heads do not divide 6",
    ),
    (
        "n_heads: 6, n_kv_heads: 2",
        "n_heads: 6, n_kv_heads: 2, window: 5",
        "11:56: model.layer.attention.window: unknown option 'window'",
    ),
    (
        "n_heads: 6, n_kv_heads: 2",
        "n_heads: six",
        "11:38: model.layer.attention.n_heads: should be a whole number, not",
    ),
    (
        "n_heads: 6, n_kv_heads: 2",
        "n_heads: 6, n_heads: 2",
        "11:41: model.layer.attention.n_heads: 'n_heads' is given twice; first",
    ),
    (
        "n_heads: 6, n_kv_heads: 2",
        "n_heads: 6, qk_norm: rope",
        "11:50: model.layer.attention.qk_norm: no norm named 'rope' ('rope' is",
    ),
    (
        "n_heads: 6, n_kv_heads: 2",
        "n_heads: 6, bias: on",
        "11:47: model.layer.attention.bias: on without quotes is true to some",
    ),
    (
        "n_heads: 6, n_kv_heads: 2",
        "n_heads: 6, bias: 1",
        "11:47: model.layer.attention.bias: should be true or false or a list, not",
    ),
    (
        "n_heads: 6, n_kv_heads: 2",
        "n_heads: 6, <<: 3",
        "11:45: model.layer.attention.<<: `<<` takes a map or a list of maps",
    ),
    ("activation: silu", "activation: silo", "12:53: model.layer.feedforward.activation: should be relu, gelu,"),
    ("activation: silu", "1: silu", "12:41: model.layer.feedforward: a key is a text, not 1"),
    (
        "    feedforward: {",
        "    cross_attention: {kind: full, n_heads: 2}\n    feedforward: {",
        "12:5: model.layer.cross_attention: stack 'decoder' has no memory to",
    ),
    (
        "    feedforward: {",
        "    dropout: 1.5\n    feedforward: {",
        "12:14: model.layer.dropout: must be from 0 to below 1, not 1.5",
    ),
    ("repeat: 3", "repeat: 0", "14:15: model.layers.0.repeat: must be at least 1, not 0"),
    ("repeat: 3", "repeat: 5001", "14:7: model.layers.0: makes more than 10,000 layers"),
    ("repeat: 3", "repeat: 3.5", "14:15: model.layers.0.repeat: should be a whole number, not the"),
    ("repeat: 3", "times: 3", "14:7: model.layers.0.times: unknown option 'times'"),
    (
        "  layers:\n    - repeat: 3\n      pattern:",
        "  layers:\n      pattern:",
        "14:7: model.layers: should be a list of maps, not a map",
    ),
    (
        "  layers:\n    - repeat: 3\n      pattern:",
        "  other:\n    - repeat: 3\n      pattern:",
        "3:3: model.layers: is missing: write a list of groups, such as",
    ),
    ("        - {}\n", "        - []\n", "17:11: model.layers.0.pattern.1: should be a map, not a list of 0"),
    ("        - {}\n", "        - {window: 3}\n", "17:12: model.layers.0.pattern.1.window: unknown option 'window'"),
    ("{kind: local, window: 13}", "{kind: local}", "16:23: model.layers.0.pattern.0.attention.window: is missing: it"),
    (
        "{kind: local, window: 13}",
        "{kind: local, window: 13, theta: 3}",
        "16:49: model.layers.0.pattern.0.attention.theta: unknown option",
    ),
    ("{kind: local, window: 13}", "locl", "16:23: model.layers.0.pattern.0.attention: no attention named 'locl'"),
    (
        "{kind: lm, tied: true}",
        "{a: lm, b: {kind: lmm}}",
        "19:27: model.head.b.kind: no head named 'lmm' (did you mean 'lm'?)",
    ),
    ("  head: {kind: lm, tied: true}\n", "", "3:3: model.head: is missing: it should be a head: its kind, a map"),
    ("objective: causal_lm", "objective: casual_lm", "20:12: objective: no objective named 'casual_lm' (did you mean"),
    (
        "objective: causal_lm",
        "objectiv: causal_lm",
        "20:1: objectiv: unknown option 'objectiv' (did you mean 'objective'?)",
    ),
    ("objective: causal_lm", "objective: causal_lm\n---\nname: b", "21:1: a second document: a spec is one"),
    ("kind: bpe", "kind: bpee", "21:51: data.tokenizer.kind: should be bpe, not the text 'bpee' (did"),
    (
        "tokenizer: {kind: bpe, vocab_size: 301}",
        "tokenizer: {kind: bpe, vocab_size: 3}",
        "21:68: data.tokenizer.vocab_size: 3 is too small: the 256 bytes and 3",
    ),
    ("lr: 5.0e-3", "lr: 5.0e-3, betas: [0.9]", "22:54: train.betas: should be a list of 2, not a list of 1"),
    ("lr: 5.0e-3", "lr: 5.0e-3, betas: [0.9, 1]", "22:54: train.betas: must be from 0 to below 1, not (0.9, 1.0)"),
    ("lr: 5.0e-3", "lr: '5.0e-3'", "22:39: train.lr: should be a number, not the text '5.0e-3': leave out"),
    ("lr: 5.0e-3", "lr: 1e999", "22:39: train.lr: should be a finite number, not inf"),
    ("lr: 5.0e-3", "lr: 0", "22:39: train.lr: must be above 0, not 0.0"),
    (
        "lr: 5.0e-3",
        "lr: 5.0e-3, init: 2024-01-01",
        "22:53: train.init: 2024-01-01 without quotes is a date to some YAML",
    ),
    ("lr: 5.0e-3", "lr: 5.0e-3, freeze: [a, 1]", "22:59: train.freeze.1: should be a text, not the whole number 1:"),
    ("lr: 5.0e-3", "lr: 5.0e-3, threads: none", "22:56: train.threads: should be a whole number or null, not the text"),
    (
        "steps: 10",
        "steps: 999999999999999999999999999999",
        "22:16: train.steps: a number of 30 digits is too large; a text goes",
    ),
    ("train: {", "train: [{", "23:1: not valid YAML"),
    ("opset: 24", "opset: 22", "23:17: export.opset: must be 23 or 24, not 22"),
    (
        "opset: 24",
        "quantize: int3",
        "23:20: export.quantize: should be none, int8, int8_weights, int4 or gptq or a map, not the text 'int3'",
    ),
    ("opset: 24", "opset: 24}}", "23:20: not valid YAML"),
    ("name: good", "name: 010", "1:7: name: 010 without quotes is 8 to some YAML readers: write the"),
    ("name: good", "name: 3", "1:7: name: should be a text, not the whole number 3: write '3' in"),
    (
        "name: good",
        "extends: ../../etc/passwd",
        "1:10: extends: should be a bundled spec's name or a path that ends in",
    ),
    ("name: good", "extends: nothing", "1:10: extends: no bundled spec is named 'nothing'"),
    ("name: good", "extends: nothing/there.yaml", "1:10: extends: nothing/there.yaml can't be read: No such file or"),
    ("name: good", "extends: [a]", "1:10: extends: should be a bundled spec's name or a path that ends in"),
    ("name: good", "name: a\x07b", "1:8: the character U+0007 can't stand in YAML"),
    ("name: good", "? [a]\n: b", "1:3: a key is a plain text"),
    ("name: good", "name: 'good", "24:1: not valid YAML"),
    ("name: good", 'name: "${${x}:HOME}"', "1:7: name: '${${x}:HOME}': a reference can't hold another one"),
]


def test_what_the_broken_ones_are_made_of_is_right() -> None:
    assert parse_spec(GOOD).name == "good"


@pytest.mark.parametrize(("old", "new", "expected"), BY_HAND)
def test_broken_by_hand(old: str, new: str, expected: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(BrokenSpec) as caught:
        parse_spec(GOOD.replace(old, new))
    assert str(caught.value).startswith(f"<text>:{expected}")


def rename_key(text: str, dice: random.Random) -> str:
    key = dice.choice(list(re.finditer(r"\w+(?=:)", text)))
    return text[: key.start()] + key[0][:-1] + "qz" + text[key.end() :]


def change_type(text: str, dice: random.Random) -> str:
    value = dice.choice(list(re.finditer(r"(?<=: )[\w.-]+", text)))
    return (
        text[: value.start()] + dice.choice(["[1, 2]", "maybe", "1.5", "true", "{a: 1}", "null"]) + text[value.end() :]
    )


def delete_line(text: str, dice: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    del lines[dice.randrange(len(lines))]
    return "".join(lines)


def double_line(text: str, dice: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    at = dice.randrange(len(lines))
    return "".join([*lines[: at + 1], *lines[at:]])


def indent(text: str, dice: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    at = dice.randrange(len(lines))
    lines[at] = dice.choice([" ", "   ", "\t"]) + lines[at]
    return "".join(lines)


def flip_bits(text: str, dice: random.Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(2):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


MUTATIONS: list[Callable[[str, random.Random], str | bytes]] = [
    rename_key, change_type, delete_line, double_line, indent, flip_bits
]  # fmt: skip


def test_mutations_are_refused_with_file_line_and_column(tmp_path: Path) -> None:
    """Mutate until 300 are broken, with those by hand; those that stay right do not count, but must be loaded."""
    dice, path, broken = random.Random(20), tmp_path / "mutant.yaml", len(BY_HAND)
    while broken < 300:
        mutant = dice.choice(MUTATIONS)(GOOD, dice)
        path.write_bytes(mutant if isinstance(mutant, bytes) else mutant.encode())
        try:
            assert load_spec(path).resolved
        except BrokenSpec as error:
            unplaced = [p for p in error.errors if not re.match(rf"{path}:[1-9]\d*:[1-9]\d*: \S", str(p))]
            assert not unplaced, mutant
            broken += bool(error.errors)
