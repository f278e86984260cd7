"""CTRL from its config.json, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peers import parity
from transformers import CTRLConfig, CTRLLMHeadModel
from two_sided import broken_by, sharpened

import transom


def small() -> Any:
    config = CTRLConfig(
        vocab_size=83, n_positions=31, n_embd=36, dff=50, n_layer=2, n_head=4, layer_norm_epsilon=1e-2,
    )  # fmt: skip
    return sharpened(CTRLLMHeadModel(config))


@pytest.mark.long
def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "hf")
    _, model = transom.import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows


def test_ctrl(tmp_path: Path) -> None:
    parity(small(), tmp_path)
    found = broken_by(
        tmp_path, {"input_ids": 83}, "model.embedding.scale=1.0", "model.position.layout=pairs", "model.norm.eps=1e-6"
    )
    assert min(found.values()) > 1e-4, found
