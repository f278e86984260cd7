"""OPT from its config.json, the odd one of 350m too, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peers import TOLERANCE, apart, parity
from transformers import OPTConfig, OPTForCausalLM, OPTForQuestionAnswering, OPTForSequenceClassification
from two_sided import broken_by, drawn, gradients, masks, sharpened, there_and_back

import transom


def config(**more: Any) -> Any:
    return OPTConfig(
        vocab_size=83, hidden_size=36, num_hidden_layers=2, num_attention_heads=4, ffn_dim=50,
        max_position_embeddings=31, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"activation_function": "gelu_new"},
        {"enable_bias": False, "_remove_final_layer_norm": True},
        {"layer_norm_elementwise_affine": False},
        {"layer_norm_elementwise_affine": False, "do_layer_norm_before": False},
    ],
)
def test_opt(tmp_path: Path, more: dict[str, Any]) -> None:
    parity(sharpened(OPTForCausalLM(config(**more))), tmp_path)
    found = broken_by(tmp_path, {"input_ids": 83}, "model.layer.attention.scale=1.0", "model.layer.norm.eps=0.1")
    assert min(found.values()) > 1e-4, found


@pytest.mark.long
def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    sharpened(OPTForCausalLM(config(activation_function="gelu_new"))).save_pretrained(tmp_path / "hf")
    _, model = transom.import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows


@torch.no_grad()
def test_a_table_narrower_than_the_model(tmp_path: Path) -> None:
    """The peer's last hidden state is mapped to the table's width already: logits are compared alone."""
    theirs = sharpened(OPTForCausalLM(config(do_layer_norm_before=False, word_embed_proj_dim=20)))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 2)
    assert apart(ours(input_ids=ids).logits, theirs(input_ids=ids).logits) < TOLERANCE


@pytest.mark.parametrize("more", [{}, {"do_layer_norm_before": False}])
def test_a_class_is_read_off_a_narrow_table_too(tmp_path: Path, more: dict[str, Any]) -> None:
    theirs = sharpened(OPTForSequenceClassification(config(word_embed_proj_dim=20, num_labels=5, **more)))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    for mask in (torch.ones_like(ids), *masks(23)):
        padded = ids.where(mask.bool(), torch.tensor(theirs.config.pad_token_id))
        with torch.no_grad():
            found, wanted = (model(input_ids=padded, attention_mask=mask).logits for model in (ours, theirs))
        assert apart(found, wanted) < TOLERANCE
    assert gradients(theirs, ours, {"classes": "logits"}, {"input_ids": ids}) < 1e-4


@torch.no_grad()
def test_a_span_is_read_off_a_narrow_table_too(tmp_path: Path) -> None:
    theirs = sharpened(OPTForQuestionAnswering(config(word_embed_proj_dim=20)))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    wanted = theirs(input_ids=ids)
    assert apart(ours(input_ids=ids).logits, torch.stack([wanted.start_logits, wanted.end_logits], -1)) < TOLERANCE
