"""Rotations whose pairs are stretched by factors of their own, otherwise in longer texts, against transformers."""

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
    Phi3Config,
    Phi3ForCausalLM,
)
from two_sided import drawn, masks

import transom
from transom.errors import InputError, SpecError
from transom.generation import Sampling, generate
from transom.interop import family_spec
from transom.training.text import Stepper

SHORT, LONG = [1.0, 1.1, 1.5], [1.3, 2.0, 9.0]


def phi3(trained: int) -> Any:
    config = Phi3Config(
        vocab_size=83, hidden_size=60, intermediate_size=50, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=96, original_max_position_embeddings=trained, rms_norm_eps=0.1,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
        rope_parameters={"rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 0.6,
                         "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": trained},
    )  # fmt: skip
    return sharpened(Phi3ForCausalLM(config))


@pytest.fixture
def crossing(tmp_path: Path) -> Any:
    """Return a model whose rows turn otherwise from 17 tokens on."""
    phi3(16).save_pretrained(tmp_path / "hf")
    return transom.import_checkpoint(tmp_path / "hf")[1]


@pytest.mark.parametrize("trained", [64, 6])
def test_short_and_long_texts(tmp_path: Path, trained: int) -> None:
    """All lengths that are compared are on one side: 23 tokens, 17 and 9 of them real, and steps from 7 on."""
    parity(phi3(trained), tmp_path)
    ids = drawn(83, 23, 1)
    which = "short" if trained == 64 else "long"
    for option in (
        f"model.position.scaling.{which}=[1.0, 1.0, 1.0]", "model.position.scaling.magnitude=1.0",
        f"model.position.scaling.trained={60 if trained == 64 else 24}", "model.position.scaling.factor=3.0",
    ):  # fmt: skip
        assert changed(tmp_path, ids, option) > 1e-4, option


@torch.no_grad()
def test_each_row_goes_by_its_own_length(tmp_path: Path, crossing: Any) -> None:
    """The peer asks for the longest row of a batch; here a row does not know the others, nor documents each other."""
    theirs, ids = phi3(16), drawn(83, 23, 1)
    for mask in masks(23):
        found = crossing(input_ids=ids, attention_mask=mask).logits
        for row in range(3):
            real = mask[row].bool()
            assert apart(found[row, real], theirs(input_ids=ids[row : row + 1, real]).logits[0]) < TOLERANCE
    documents = torch.tensor([[0] * 19 + [1] * 4] * 3)
    found = crossing(input_ids=ids, document_ids=documents).logits
    for part in (slice(0, 19), slice(19, 23)):
        assert apart(found[:, part], theirs(input_ids=ids[:, part]).logits) < TOLERANCE


@torch.no_grad()
def test_a_state_does_not_cross(crossing: Any) -> None:
    ids = drawn(83, 23, 1)
    out = crossing(input_ids=ids[:, :15], state=crossing.empty_state(3))
    out = crossing(input_ids=ids[:, 15:16], state=out.state)
    with pytest.raises(InputError, match="a state of a row of at most 16 tokens can't go on beyond them"):
        crossing(input_ids=ids[:, 16:17], state=out.state)
    out = crossing(input_ids=ids[:, :20], state=crossing.empty_state(3))
    assert out.state.crop(17).columns == 17
    with pytest.raises(InputError, match="can't crop a state of a row of more than 16 tokens to 16 or fewer"):
        out.state.crop(16)
    right, left = masks(23)
    for mask in (right, left):  # 23, 17 and 9 tokens: the last row is the one that may not go on
        state = crossing(input_ids=ids, attention_mask=mask, state=crossing.empty_state(3)).state
        for _ in range(7):
            state = crossing(input_ids=ids[:, :1], state=state).state
        with pytest.raises(InputError, match="at most 16 tokens"):
            crossing(input_ids=ids[:, :1], state=state)


@torch.no_grad()
def test_what_is_written_is_read_anew_where_it_crosses(tmp_path: Path, crossing: Any) -> None:
    """Here and in the exported folder the tokens are those that whole passes give."""
    prompts = [drawn(83, 12, 1)[0].tolist(), drawn(83, 20, 2)[0].tolist(), drawn(83, 14, 3)[0].tolist()]
    wanted = []
    for prompt in prompts:
        row = list(prompt)
        for _ in range(9):
            row.append(int(crossing(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
        wanted.append(row[len(prompt) :])
    greedy = Sampling(max_new_tokens=9, temperature=0.0)
    assert [row.ids for row in generate(Stepper(crossing, 83), prompts, greedy)] == wanted
    assert transom.export(crossing, tmp_path / "out").rows
    from transom.deploy import arrays

    assert [row.ids for row in arrays.generate(tmp_path / "out", prompts, greedy)] == wanted
    folder = arrays.ArrayRuntime(tmp_path / "out")
    ids = drawn(83, 17, 1).numpy()
    state = folder.step(ids[:, :16], None, folder.start(3))[1]
    with pytest.raises(InputError, match="at most 16 tokens"):
        folder.step(ids[:, 16:], None, state)


def older(model: Any, config: Any, trained: int, width: int) -> Any:
    """Return a small Falcon or GPT-NeoX, `width` wide, whose factors are for all three of its pairs."""
    sizes = {"vocab_size": 83, "num_hidden_layers": 2, "max_position_embeddings": 96, "bos_token_id": 1}
    rope: dict[str, Any] = {
        "rope_type": "longrope", "rope_theta": 500.0, "short_factor": SHORT, "long_factor": LONG,
        "original_max_position_embeddings": trained, "factor": 4.0,
    }  # fmt: skip
    if config is GPTNeoXConfig:
        rope["partial_rotary_factor"], sizes["intermediate_size"] = 0.6, 50
    heads = 4 if config is GPTNeoXConfig else 6
    return sharpened(model(config(**sizes, hidden_size=width, num_attention_heads=heads, rope_parameters=rope)))


@pytest.mark.parametrize("trained", [64, 6])
@pytest.mark.parametrize(
    ("model", "config", "width"), [(FalconForCausalLM, FalconConfig, 36), (GPTNeoXForCausalLM, GPTNeoXConfig, 40)]
)
def test_falcon_and_gpt_neox_too(tmp_path: Path, model: Any, config: Any, width: int, trained: int) -> None:
    parity(older(model, config, trained, width), tmp_path)
    which = "short" if trained == 64 else "long"
    for option in (f"model.position.scaling.{which}=[1.0, 1.0, 1.0]", "model.position.scaling.magnitude=1.0"):
        assert changed(tmp_path, drawn(83, 23, 1), option) > 1e-4, option


@torch.no_grad()
def test_llama_too(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=83, hidden_size=36, intermediate_size=50, num_hidden_layers=2, num_attention_heads=6,
        max_position_embeddings=96,
        rope_parameters={"rope_type": "longrope", "rope_theta": 500.0, "short_factor": SHORT, "long_factor": LONG,
                         "original_max_position_embeddings": 16, "factor": 4.0, "attention_factor": 1.3},
    )  # fmt: skip
    theirs = sharpened(LlamaForCausalLM(config))
    theirs.save_pretrained(tmp_path / "hf")
    _, ours = transom.import_checkpoint(tmp_path / "hf")
    for length in (16, 17):
        ids = drawn(83, length, 1)
        assert apart(ours(input_ids=ids).logits, theirs(input_ids=ids).logits) < TOLERANCE


def test_older_names_and_what_is_wrong(tmp_path: Path) -> None:
    phi3(16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    wanted = family_spec(tmp_path).model
    config |= {"rope_scaling": {"type": "su", "short_factor": SHORT, "long_factor": LONG}, "rope_theta": 500.0}
    config["partial_rotary_factor"] = config.pop("rope_parameters")["partial_rotary_factor"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert family_spec(tmp_path).model == wanted
    config["rope_scaling"]["short_factor"] = SHORT[:2]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match="2 factors for the 3 pairs that turn"):
        transom.compose(family_spec(tmp_path))
    linear = ["model.position.scaling.kind=linear", "model.position.scaling.factor=2.0"]
    with pytest.raises(SpecError, match="short_factor: longrope needs it, and no other kind has it"):
        family_spec(tmp_path, linear)
