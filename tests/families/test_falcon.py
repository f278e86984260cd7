"""Falcon from its config.json, in all its layouts, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peers import TOLERANCE, apart, changed, parity, sharpened
from transformers import FalconConfig, FalconForCausalLM
from two_sided import drawn

import transom

KINDS: dict[str, dict[str, Any]] = {
    "rw": {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},  # falcon-rw-1b
    "7b": {"rope_theta": 500.0, "ffn_hidden_size": 50},
    "per_head": {"multi_query": False, "bias": True, "activation": "gelu_new", "tie_word_embeddings": False},
    "40b": {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "11b": {"new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
}  # fmt: skip
NEEDED = {
    "rw": ("model.position.scale=1.0", "model.position={kind: rope}"),
    "7b": ("model.position.theta=10000.0", "model.position=none"),
    "per_head": ("model.layer.feedforward.activation=gelu",),
    "40b": ("model.layer.norm.eps=1.0e-5", "model.norm.eps=1.0e-5"),
    "11b": ("model.position.scaling=null", "model.position.theta=10000.0"),
}


def small(kind: str, **more: Any) -> Any:
    sizes = {"vocab_size": 83, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6}
    given = {"bos_token_id": 1, "eos_token_id": 2, "layer_norm_epsilon": 0.1, "max_position_embeddings": 600}
    return sharpened(FalconForCausalLM(FalconConfig(**sizes | given | KINDS[kind] | more)))


@pytest.mark.parametrize("kind", KINDS)
def test_falcon(tmp_path: Path, kind: str) -> None:
    parity(small(kind), tmp_path)
    ids = drawn(83, 23, 1)
    for option in NEEDED[kind]:
        assert changed(tmp_path, ids, option) > 1e-4, option


@torch.no_grad()
def test_far_places_are_rounded_as_the_peer_rounds_them(tmp_path: Path) -> None:
    """Beyond 256 tokens bf16 tells no neighbours apart, and slopes of 12 heads are no powers of two."""
    theirs = small("rw", num_attention_heads=12)
    theirs.save_pretrained(tmp_path / "hf")
    _, ours = transom.import_checkpoint(tmp_path / "hf")
    ids = drawn(83, 555, 1)
    wanted = theirs(input_ids=ids).logits
    assert apart(ours(input_ids=ids).logits, wanted) < TOLERANCE
    assert changed(tmp_path, ids, "model.position.rounded=null") > 1e-4


@pytest.mark.parametrize("kind", ["rw", pytest.param("40b", marks=pytest.mark.long)])
def test_a_graph_of_it_agrees(tmp_path: Path, kind: str) -> None:
    small(kind).save_pretrained(tmp_path / "hf")
    _, model = transom.import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows
