"""ELECTRA's discriminator and generator from their config.json, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining
from two_sided import broken_by, encoder_parity, sharpened

INPUTS = {"input_ids": 83, "token_type_ids": 3}


@pytest.mark.parametrize("width", [20, 36])
@pytest.mark.parametrize(("model", "head"), [(ElectraForPreTraining, "replaced"), (ElectraForMaskedLM, "words")])
def test_electra(tmp_path: Path, model: Any, head: str, width: int) -> None:
    config = ElectraConfig(
        vocab_size=83, hidden_size=36, num_hidden_layers=2, num_attention_heads=4, intermediate_size=50,
        max_position_embeddings=29, type_vocab_size=3, layer_norm_eps=1e-2, hidden_act="relu", embedding_size=width,
    )  # fmt: skip
    encoder_parity(sharpened(model(config)), tmp_path, INPUTS, {head: "logits"})
    found = broken_by(
        tmp_path, INPUTS, "model.embedding.norm.eps=1e-12", "model.layer.norm.eps=1e-12",
        "model.layer.feedforward.activation=gelu",
    )  # fmt: skip
    assert min(found.values()) > 1e-4, found
