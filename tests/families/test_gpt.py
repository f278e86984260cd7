"""GPT and GPT-Neo from their config.json, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peers import changed, parity, sharpened
from transformers import GPTNeoConfig, GPTNeoForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel
from two_sided import drawn

import transom
from transom.errors import SpecError
from transom.interop import family_spec


def gpt(**more: Any) -> Any:
    config = OpenAIGPTConfig(
        vocab_size=83, n_positions=31, n_embd=36, n_layer=2, n_head=4, layer_norm_epsilon=0.1, **more
    )
    return sharpened(OpenAIGPTLMHeadModel(config))


def gpt_neo(**more: Any) -> Any:
    config = GPTNeoConfig(
        vocab_size=83, max_position_embeddings=31, hidden_size=36, num_layers=5, num_heads=4, intermediate_size=50,
        attention_types=[[["global", "local"], 2], [["local"], 1]], window_size=7, layer_norm_epsilon=0.1,
        bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip
    return sharpened(GPTNeoForCausalLM(config))


def test_gpt(tmp_path: Path) -> None:
    parity(gpt(), tmp_path, attention="eager")
    for option in (
        "model.layer.feedforward.activation=gelu", "model.layer.norm.eps=1.0e-5", "model.layer.attention.scale=1.0",
    ):  # fmt: skip
        assert changed(tmp_path, drawn(83, 23, 1), option) > 1e-4, option


@pytest.mark.parametrize("more", [{}, {"activation_function": "relu", "tie_word_embeddings": False}])
def test_gpt_neo(tmp_path: Path, more: dict[str, Any]) -> None:
    parity(gpt_neo(**more), tmp_path, attention="eager")
    for option in (
        "model.layer.attention.scale=null", "model.layer.attention.window=8", "model.layer.feedforward.activation=gelu",
        "model.layers.1.pattern.0.attention=full", "model.layer.norm.eps=1.0e-5", "model.norm.eps=1.0e-5",
    ):  # fmt: skip
        assert changed(tmp_path, drawn(83, 23, 1), option) > 1e-4, option


def test_layers_that_come_as_groups_are_read_as_the_list_of_them(tmp_path: Path) -> None:
    gpt_neo().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    wanted = family_spec(tmp_path).model
    del config["attention_layers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert family_spec(tmp_path).model == wanted
    (tmp_path / "config.json").write_text(json.dumps(config | {"attention_types": [[["global", "local"], 3]]}))
    with pytest.raises(SpecError, match="attention_types: should be a list of 5, as num_layers says, not of 6"):
        family_spec(tmp_path)


@pytest.mark.parametrize(
    "make", [gpt, pytest.param(gpt_neo, marks=pytest.mark.long)]
)  # as gemma2, whose layers take turns
def test_a_graph_of_it_agrees(tmp_path: Path, make: Any) -> None:
    make().save_pretrained(tmp_path / "hf")
    _, model = transom.import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows
