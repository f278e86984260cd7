"""Bart from its config.json, against transformers."""

from __future__ import annotations

from pathlib import Path

from transformers import BartConfig, BartForConditionalGeneration
from two_sided import broken_by, seq2seq_parity, sharpened

INPUTS = {"input_ids": 83, "decoder_input_ids": 83}


def test_bart(tmp_path: Path) -> None:
    config = BartConfig(
        vocab_size=83, d_model=36, encoder_layers=2, decoder_layers=3, encoder_attention_heads=6,
        decoder_attention_heads=4, encoder_ffn_dim=50, decoder_ffn_dim=44, max_position_embeddings=31,
        activation_function="gelu_new", scale_embedding=True,
    )  # fmt: skip
    seq2seq_parity(sharpened(BartForConditionalGeneration(config)), tmp_path, 83)
    found = broken_by(
        tmp_path,
        INPUTS,
        "model.embedding.scale=1.0",
        "model.layer.feedforward.activation=relu",
        "model.embedding.norm.eps=0.01",
    )
    assert min(found.values()) > 1e-4, found
