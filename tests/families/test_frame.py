"""From a folder to a run without a spec: what config.json may say, what else comes along, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import FAMILIES
from peers import apart, sharpened
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import transom
from transom.data import load_tokenizer
from transom.errors import CheckpointError, DataError, SpecError
from transom.interop import export_checkpoint, family_spec, import_checkpoint, import_run
from transom.registry.compose import compose, outline
from transom.registry.sources import families
from transom.registry.spec import load_spec, parse_spec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one small published model of each of two families."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("gpt2", "qwen3"):
        sharpened(FAMILIES[name].make()).save_pretrained(folder / name)
    return folder


def copied(made: Path, name: str, to: Path, **fields: Any) -> Path:
    """Return a copy of a folder whose config.json has other fields; those that are `...` are left out."""
    to.mkdir()
    for path in (made / name).iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    config = json.loads((to / "config.json").read_text()) | fields
    kept = {name: value for name, value in config.items() if value is not ...}
    (to / "config.json").write_text(json.dumps(kept))
    return to


@pytest.mark.parametrize("name", families())
def test_a_family_is_a_spec_of_its_own(name: str) -> None:
    """Its template composes, its own section fits it, and it is short; a user's spec may begin with it."""
    spec = parse_spec(f"{{name: mine, extends: {name}}}")
    outline(spec)
    assert spec.hf is not None
    assert spec.hf.config is not None
    lines = families()[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 70
    assert max(map(len, lines)) <= 120
    assert "config" not in spec.resolved["hf"]
    assert parse_spec(spec.resolved) == spec


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("llama", 1_235_814_400),
        ("mistral", 7_241_732_096),
        ("qwen3", 596_049_920),
        ("gpt_neox", 162_322_944),
        ("gemma3", 999_885_952),
        ("gemma2", 2_614_341_888),
        ("phi3", 3_821_079_552),
        ("mixtral", 46_702_792_704),
    ],
)
def test_the_sizes_are_the_published_ones(name: str, count: int) -> None:
    assert sum(weight.numel() for weight in compose(load_spec(name), "meta").parameters()) == count


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_embed": 36}, "n_embed: is not known to the family, and may change what is computed (did you mean 'n_e"),
        ({"n_head": ...}, "n_head: is missing: the family knows no default of it"),
        ({"n_head": "4"}, "n_head: should be a whole number, not the text '4'"),
        ({"n_head": 5}, "n_head: 5 heads do not divide d_model 36"),
        ({"activation_function": "misch"}, "activation_function: 'misch' is not known to the family (did you"),
        ({"tie_encoder_decoder": True}, "tie_encoder_decoder: true is not supported; only false is"),
        ({"add_cross_attention": True}, "add_cross_attention: true is not supported; only false is"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: the weights are quantised (fp8); "),
        ({"architectures": ["GPT2LMHead"]}, "architectures: 'GPT2LMHead' is not known to the family (did you mean"),
    ],
)  # fmt: skip
def test_a_field_that_is_not_understood_is_refused_at_its_place(
    made: Path, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    folder = copied(made, "gpt2", tmp_path / "hf", **fields)
    with pytest.raises(SpecError) as caught:
        import_run(folder, None, tmp_path / "run")
    assert f"{folder / 'config.json'}: {said}" in str(caught.value) or f"config.json: {said}" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_several_are_told_at_once_and_a_type_that_is_not_known(made: Path, tmp_path: Path) -> None:
    folder = copied(made, "gpt2", tmp_path / "hf", one=1, two=2)
    with pytest.raises(SpecError, match=r"config\.json: one: (?s:.*)config\.json: two: "):
        family_spec(folder)
    with pytest.raises(CheckpointError, match=r"no family reads 'gpt3' \(did you mean 'gpt2'\?\); give a spec"):
        family_spec(copied(made, "gpt2", tmp_path / "other", model_type="gpt3"))


def test_layers_follow_a_list_and_its_length(made: Path, tmp_path: Path) -> None:
    near, far = "sliding_attention", "full_attention"
    types = [near, near, far, near, near, far, near]
    folder = copied(made, "qwen3", tmp_path / "hf", num_hidden_layers=7, layer_types=types)
    spec = family_spec(folder)
    windows = [getattr(layer.attention.config, "window", None) for layer in spec.model.stacks["decoder"].layers]  # type: ignore[union-attr]
    assert windows == [7, 7, None, 7, 7, None, 7]
    assert [group["repeat"] for group in spec.resolved["model"]["layers"]] == [2, 1]
    with pytest.raises(SpecError, match="layer_types: should be a list of 6, as num_hidden_layers says, not of 7"):
        family_spec(copied(made, "qwen3", tmp_path / "b", num_hidden_layers=6, layer_types=types))
    with pytest.raises(SpecError, match=r"layer_types\.1: 'chunked' is not known to the family"):
        family_spec(copied(made, "qwen3", tmp_path / "c", num_hidden_layers=2, layer_types=[near, "chunked"]))


def test_older_names_and_places_of_fields(made: Path, tmp_path: Path) -> None:
    old = copied(
        made,
        "qwen3",
        tmp_path / "hf",
        rope_parameters=...,
        rope_theta=500.0,
        rope_scaling={"type": "linear", "factor": 4.0},
    )
    assert family_spec(old) == family_spec(made / "qwen3")


def test_published_names_without_the_prefix(made: Path, tmp_path: Path) -> None:
    """As gpt2 itself is published: the names of the body alone."""
    folder = copied(made, "gpt2", tmp_path / "hf", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors")
    spec, model = transom.import_checkpoint(folder)
    assert model.spec is spec
    table = model.decoder.embedding.weight  # type: ignore[union-attr]
    assert torch.equal(table, weights["wte.weight"])  # type: ignore[arg-type]
    back = load_file(
        export_checkpoint(import_run(folder, None, tmp_path / "run"), tmp_path / "b") / "model.safetensors"
    )
    assert back.keys() == weights.keys()


def test_a_part_is_swapped_as_it_comes_in(made: Path) -> None:
    plain = import_checkpoint(made / "gpt2")[1]
    changes = ["model.layer.attention.kind=local", "model.layer.attention.window=5"]
    spec, swapped = import_checkpoint(made / "gpt2", family_spec(made / "gpt2", changes))
    assert spec.resolved["model"]["layer"]["attention"]["window"] == 5
    ids = torch.randint(83, (1, 17))
    with torch.no_grad():
        found, wanted = swapped(input_ids=ids).logits, plain(input_ids=ids).logits
    assert apart(found[:, :5], wanted[:, :5]) < 1e-5
    assert apart(found[:, 5:], wanted[:, 5:]) > 1e-2


TEXTS = ["the cat sat on the mat. ", "a dog ate the hat of the cat, and sat. "] * 9


def with_text(folder: Path) -> Path:
    """Add a tokenizer as GPT-2's is, with tokens of a chat, and what goes with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "<|turn|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("unitary", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": {"content": "<s>"}, "pad_token": null}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE.md").write_text("free")
    return folder


def test_text_comes_along_with_the_roles_of_its_tokens(made: Path, tmp_path: Path) -> None:
    folder = with_text(copied(made, "gpt2", tmp_path / "hf"))
    run = import_run(folder, None, tmp_path / "run")
    tokenizer = load_tokenizer(run)
    vocabulary = tokenizer.vocabulary
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad, vocabulary.mask) == (0, 1, 0, -1)
    with pytest.raises(DataError, match="objective masked_lm hides tokens behind a mask"):
        vocabulary.hiding("masked_lm")
    assert vocabulary.ends == (1, 2)
    text = "the cat, the unitary 漢 and <s> a dog"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text]) == [ids]
    assert sum(map(tokenizer.byte_length, ids)) == len(text.encode())
    assert set(ids).isdisjoint({0, 1, 2})
    assert json.loads((run / "special_tokens.json").read_text())["stops"] == ["<|turn|>"]
    back = export_checkpoint(run, tmp_path / "back")
    went = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "model.safetensors"}
    assert {name: (back / name).read_bytes() for name in went} == went


def test_a_tokenizer_of_which_nothing_says_how_a_text_ends(made: Path, tmp_path: Path) -> None:
    folder = with_text(copied(made, "gpt2", tmp_path / "hf", eos_token_id=None))
    (folder / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match="nothing says which token ends a text: neither"):
        import_run(folder, None, tmp_path / "run")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "mask_token": "nowhere"}')
    assert load_tokenizer(import_run(folder, None, tmp_path / "run")).vocabulary.ends == (1,)


COMMANDS = """
import json, sys
from transom.cli import main

for args in json.loads(sys.argv[1]):
    try:
        main(args)
    except SystemExit as ended:
        print(f"-- {ended.code}", flush=True)
"""


def test_an_imported_run_evaluates_writes_and_is_exported(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=300,
        n_positions=32,
        n_embd=12,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "hf")
    with_text(tmp_path / "hf")
    (tmp_path / "text").mkdir()
    for number in range(8):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number}: {TEXTS[number % 2]}" * 5)
    lines = [
        ["import", "hf", "-o", "run", "data.path=text", "data.seq_len=16", "data.hold_out=0.25"],
        ["eval", "run"],
        ["generate", "run", "the cat"],
        ["export", "run", "-o", "out"],
        ["generate", "out", "the cat"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(lines)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    printed = re.split(r"-- (\d)\n", done.stdout)
    assert printed[1::2] == ["0"] * 5, done.stderr
    assert printed[4] == printed[8]
    assert load_spec(tmp_path / "run" / "spec.yaml").name == "gpt2"
    assert json.loads((tmp_path / "out" / "transom.json").read_text())["stop_ids"] == [2]
