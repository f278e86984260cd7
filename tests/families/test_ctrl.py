"""CTRL from its config.json, against transformers."""

from __future__ import annotations

from pathlib import Path

from peers import parity
from transformers import CTRLConfig, CTRLLMHeadModel
from two_sided import broken_by, sharpened


def test_ctrl(tmp_path: Path) -> None:
    config = CTRLConfig(
        vocab_size=83, n_positions=31, n_embd=36, dff=50, n_layer=2, n_head=4, layer_norm_epsilon=1e-2,
    )  # fmt: skip
    parity(sharpened(CTRLLMHeadModel(config)), tmp_path)
    found = broken_by(
        tmp_path, {"input_ids": 83}, "model.embedding.scale=1.0", "model.position.layout=pairs", "model.norm.eps=1e-6"
    )
    assert min(found.values()) > 1e-4, found
