"""Rotations that slow down with the length of a text, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import TOLERANCE, apart, changed, parity, sharpened
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from two_sided import drawn, masks

import transom
from transom.errors import InputError, SpecError
from transom.generation import Sampling, generate
from transom.interop import family_spec
from transom.training.text import Stepper

SIZES = {"vocab_size": 83, "bos_token_id": 1, "eos_token_id": 2}
LONGER = "model.max_seq_len=96"


def rope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0, **more}


def llama(most: int) -> Any:
    config = LlamaConfig(
        **SIZES, hidden_size=36, intermediate_size=50, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=most, rope_parameters=rope(),
    )  # fmt: skip
    return sharpened(LlamaForCausalLM(config))


def falcon(most: int) -> Any:
    config = FalconConfig(
        **SIZES, hidden_size=36, num_hidden_layers=2, num_attention_heads=6, max_position_embeddings=most,
        rope_parameters=rope(),
    )  # fmt: skip
    return sharpened(FalconForCausalLM(config))


def gpt_neox(most: int, **more: Any) -> Any:
    config = GPTNeoXConfig(
        **SIZES, hidden_size=40, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=most, rope_parameters=rope(partial_rotary_factor=0.6, **more),
    )  # fmt: skip
    return sharpened(GPTNeoXForCausalLM(config))


def longer(folder: Path) -> Any:
    """Return the model of a folder, for texts longer than those that it was trained on."""
    return transom.import_checkpoint(folder / "hf", family_spec(folder / "hf", [LONGER]))[1]


@pytest.fixture
def crossing(tmp_path: Path) -> Any:
    """Return a model whose rows turn otherwise at each length beyond 16 tokens."""
    llama(16).save_pretrained(tmp_path / "hf")
    return longer(tmp_path)


@pytest.mark.parametrize("make", [llama, falcon, gpt_neox])
def test_short_texts_turn_as_ever(tmp_path: Path, make: Any) -> None:
    parity(make(64), tmp_path)
    assert changed(tmp_path, drawn(83, 23, 1), "model.position.scaling=null") == 0.0
    assert changed(tmp_path, drawn(83, 23, 1), "model.position.scaling.kind=linear") > 1e-4


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_gpt_neox_takes_the_other_kinds_too(tmp_path: Path, kind: str) -> None:
    turns = {"beta_slow": 0.3, "beta_fast": 0.6, "attention_factor": 1.2}
    if kind == "llama3":
        turns = {"low_freq_factor": 0.3, "high_freq_factor": 0.6}
    parity(gpt_neox(64, rope_type=kind, original_max_position_embeddings=32, **turns), tmp_path)
    for option in ("slow=0.05", "fast=30.0", "trained=16", "factor=2.0"):
        assert changed(tmp_path, drawn(83, 23, 1), f"model.position.scaling.{option}") > 1e-4, option


@pytest.mark.parametrize("make", [llama, falcon, gpt_neox])
def test_longer_texts_turn_more_slowly(tmp_path: Path, make: Any) -> None:
    theirs = make(16)
    theirs.save_pretrained(tmp_path / "hf")
    ours = longer(tmp_path)
    for length in (16, 17, 23, 61):
        ids = drawn(83, length, 1)
        with torch.no_grad():
            assert apart(ours(input_ids=ids).logits, theirs(input_ids=ids).logits) < TOLERANCE
    tables = theirs.get_input_embeddings(), ours.decoder.embedding
    for model in (theirs, ours):
        model(input_ids=ids).logits[..., :7].sum().backward()
    real = torch.arange(83) != tables[0].padding_idx
    assert apart(tables[1].weight.grad[real], tables[0].weight.grad[real]) < 10 * TOLERANCE
    for option in ("factor=2.0", "trained=17"):
        spec = family_spec(tmp_path / "hf", [LONGER, f"model.position.scaling.{option}"])
        other = transom.import_checkpoint(tmp_path / "hf", spec)[1]
        assert apart(other(input_ids=ids).logits, ours(input_ids=ids).logits) > 1e-4


@torch.no_grad()
def test_each_row_goes_by_its_own_length(crossing: Any) -> None:
    """The peer goes by the longest row it has seen so far; here a row knows no others, nor documents each other."""
    ids = drawn(83, 23, 1)
    for mask in masks(23):
        found = crossing(input_ids=ids, attention_mask=mask).logits
        for row in range(3):
            real = mask[row].bool()
            assert apart(found[row, real], llama(16)(input_ids=ids[row : row + 1, real]).logits[0]) < TOLERANCE
    documents = torch.tensor([[0] * 19 + [1] * 4] * 3)
    found = crossing(input_ids=ids, document_ids=documents).logits
    for part in (slice(0, 19), slice(19, 23)):
        assert apart(found[:, part], llama(16)(input_ids=ids[:, part]).logits) < TOLERANCE


@torch.no_grad()
def test_a_state_does_not_go_on_beyond(crossing: Any) -> None:
    ids = drawn(83, 23, 1)
    out = crossing(input_ids=ids[:, :16], state=crossing.empty_state(3))
    with pytest.raises(InputError, match="a state of a row of at most 16 tokens can't go on beyond them"):
        crossing(input_ids=ids[:, 16:17], state=out.state)
    out = crossing(input_ids=ids[:, :19], state=crossing.empty_state(3))
    with pytest.raises(InputError, match="at most 19 tokens"):
        crossing(input_ids=ids[:, 19:21], state=out.state)
    with pytest.raises(InputError, match="can't crop a state of a row of more than 18 tokens to 18 or fewer"):
        out.state.crop(18)
    for mask in masks(23):  # 23, 17 and 9 tokens: the second may not go on, the last may
        state = crossing(input_ids=ids, attention_mask=mask, state=crossing.empty_state(3)).state
        two, one = torch.tensor([[0], [1], [1]]), torch.tensor([[0], [0], [1]])
        with pytest.raises(InputError, match="at most 17 tokens"):
            crossing(input_ids=ids[:, :1], attention_mask=two, state=state)
        crossing(input_ids=ids[:, :1], attention_mask=one, state=state)


@torch.no_grad()
def test_what_is_written_is_read_anew_for_each_token_beyond(tmp_path: Path, crossing: Any) -> None:
    """Here and in the exported folder the tokens are those that whole passes give."""
    prompts = [drawn(83, 12, 1)[0].tolist(), drawn(83, 20, 2)[0].tolist(), drawn(83, 14, 3)[0].tolist()]
    wanted = []
    for prompt in prompts:
        row = list(prompt)
        for _ in range(7):
            row.append(int(crossing(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
        wanted.append(row[len(prompt) :])
    greedy = Sampling(max_new_tokens=7, temperature=0.0)
    assert [row.ids for row in generate(Stepper(crossing, 83), prompts, greedy)] == wanted
    assert transom.export(crossing, tmp_path / "out").rows
    from transom.deploy import arrays

    assert [row.ids for row in arrays.generate(tmp_path / "out", prompts, greedy)] == wanted
    folder = arrays.ArrayRuntime(tmp_path / "out")
    ids = drawn(83, 20, 1).numpy()
    state = folder.step(ids[:, :19], None, folder.start(3))[1]
    with pytest.raises(InputError, match="at most 19 tokens"):
        folder.step(ids[:, 19:], None, state)


def test_older_names_and_what_is_wrong(tmp_path: Path) -> None:
    llama(16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    wanted = family_spec(tmp_path).model
    del config["rope_parameters"]
    config |= {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "rope_theta": 500.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert family_spec(tmp_path).model == wanted
    (tmp_path / "config.json").write_text(json.dumps(config | {"dynamic_trained": 9}))
    with pytest.raises(SpecError, match="dynamic_trained: is not known to the family"):
        family_spec(tmp_path)
    config["rope_scaling"] = {"type": "dynamic"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match="factor: dynamic needs it"):
        family_spec(tmp_path)
