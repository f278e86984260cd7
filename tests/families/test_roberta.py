"""RoBERTa from its config.json, against transformers."""

from __future__ import annotations

from pathlib import Path

from transformers import RobertaConfig, RobertaForMaskedLM
from two_sided import broken_by, encoder_parity, sharpened

INPUTS = {"input_ids": 83, "token_type_ids": 3}


def test_roberta(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=83, hidden_size=36, num_hidden_layers=2, num_attention_heads=4, intermediate_size=50,
        max_position_embeddings=31, type_vocab_size=3, layer_norm_eps=1e-2, hidden_act="gelu_new",
    )  # fmt: skip
    encoder_parity(sharpened(RobertaForMaskedLM(config)), tmp_path, INPUTS, {"head": "logits"})
    found = broken_by(tmp_path, INPUTS, "model.position.offset=0", "model.embedding.norm.eps=1e-5")
    assert min(found.values()) > 1e-4, found
