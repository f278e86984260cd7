"""Qwen3-Next from its config.json, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import SIZES
from peers import TOLERANCE, apart, changed, parity, sharpened
from published import spec_of
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextModel

import transom
from transom.errors import SpecError
from transom.interop import import_checkpoint
from transom.registry.spec import load_spec

OPTIONS: dict[str, Any] = SIZES | {
    "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 99, "rms_norm_eps": 0.1,
    "linear_conv_kernel_dim": 3, "linear_key_head_dim": 11, "linear_value_head_dim": 7, "linear_num_key_heads": 3,
    "linear_num_value_heads": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3], "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 13, "num_experts": 7, "num_experts_per_tok": 3, "attention_bias": True,
    "hidden_act": "gelu", "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0, "partial_rotary_factor": 0.61},
}  # fmt: skip
PUBLISHED = {
    "layer_types": None, "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": False,
    "hidden_act": "silu", "norm_topk_prob": False, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.4},
}  # fmt: skip


def made(**options: Any) -> Any:
    model = sharpened(Qwen3NextForCausalLM(Qwen3NextConfig(**OPTIONS | options)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.add_(0.8)  # what norms of q and k leave of the scores' spread is theirs alone
    return model


@pytest.mark.parametrize(("options", "length"), [({}, 71), (PUBLISHED, 23)])  # 71: over chunks
def test_qwen3_next_computes_the_same_and_goes_back(tmp_path: Path, options: dict[str, Any], length: int) -> None:
    parity(made(**options), tmp_path, length=length)
    layers = "model.layers.0.pattern.0.attention"  # a delta rule
    ids = torch.randint(83, (1, 23))
    for option in (
        "model.layer.attention.qk_norm.eps=1.0e-6", "model.layer.norm.eps=1.0e-6", "model.norm.eps=1.0e-6",
        "model.position.fraction=1.0", "model.position.theta=10000.0", "model.layer.feedforward.n_active=2",
        f"model.layer.feedforward.renormalise={'true' if options else 'false'}",
        f"model.layer.feedforward.activation={'relu' if options else 'silu'}",
        f"{layers}.activation=relu", f"{layers}.norm_before_gate=false", f"{layers}.eps=1.0e-6",
    ):  # fmt: skip
        assert changed(tmp_path, ids, option) > 1e-4, option


@torch.no_grad()
def test_without_a_head(tmp_path: Path) -> None:
    theirs = sharpened(Qwen3NextModel(Qwen3NextConfig(**OPTIONS)))
    theirs.save_pretrained(tmp_path)
    _, ours = import_checkpoint(tmp_path)
    ids = torch.randint(83, (3, 23))
    assert apart(ours(input_ids=ids).hidden, theirs(input_ids=ids).last_hidden_state) < TOLERANCE


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    made(num_hidden_layers=2, layer_types=OPTIONS["layer_types"][:2], mlp_only_layers=[]).save_pretrained(
        tmp_path / "hf"
    )
    _, model = import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows


def config(**options: Any) -> Any:
    """Return what the peer writes as config.json; fields that are `...` are left out."""
    written = json.loads(Qwen3NextConfig(**OPTIONS, architectures=["Qwen3NextForCausalLM"]).to_json_string())
    return {name: value for name, value in (written | options).items() if value is not ...}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, "dAda"),
        ({"layer_types": ..., "full_attention_interval": 3, "mlp_only_layers": ...}, "dDaD"),
        ({"layer_types": ..., "decoder_sparse_step": 1, "mlp_only_layers": [0]}, "dDDA"),
        ({"layer_types": None, "full_attention_interval": 1, "mlp_only_layers": []}, "aAaA"),
    ],
)
def test_which_layers_are_what(fields: dict[str, Any], wanted: str) -> None:
    """Delta rules and attentions; capitals have experts."""
    letters = {"gated_delta": "d", "full": "a"}
    found = ""
    for layer in spec_of(config(**fields), "config.json").model.stacks["decoder"].layers:
        assert layer.attention is not None
        assert layer.feedforward is not None
        letter = letters[layer.attention.name]
        found += letter.upper() if layer.feedforward.name == "experts" else letter
    assert found == wanted


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"linear_num_key_heads": 4}, "linear_num_key_heads: 4 do not divide 6 heads evenly"),
        ({"layer_types": ["linear_attention"]}, "layer_types: should be a list of 4, as num_hidden_layers says, not"),
        ({"attn_output_gate": False}, "attn_output_gate: is not known to the family"),
        ({"num_experts": 2}, "num_experts_per_tok: 3 of 2 experts"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        transom.compose(spec_of(config(**fields), "config.json"), "meta")


@pytest.mark.parametrize(
    "changes",
    [
        ("model.layers.0.pattern.3.attention.kind=local", "model.layers.0.pattern.3.attention.window=16"),
        ("model.layers.0.pattern.0.attention.kind=state_space",),
        ("model.layer.feedforward.kind=glu", "model.layer.norm=layer"),
        ("model.layers=[{repeat: 2}]", "model.position=alibi"),
    ],
)
def test_its_parts_can_be_swapped(changes: tuple[str, ...]) -> None:
    transom.compose(load_spec("qwen3_next", changes), "meta")


def test_a_bias_on_scores_is_refused_with_the_reason() -> None:
    with pytest.raises(SpecError, match="gated_delta can't take a bias on the scores, because each token corrects"):
        transom.compose(load_spec("qwen3_next", ["model.position=alibi"]), "meta")
