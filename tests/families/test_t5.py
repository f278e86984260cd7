"""T5 and T5 1.1 from their config.json, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import TOLERANCE, apart
from safetensors.torch import load_file, save_file
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration
from two_sided import broken_by, drawn, seq2seq_parity, sharpened

from transom.interop import import_checkpoint

INPUTS = {"input_ids": 83, "decoder_input_ids": 83}


SIZES = {
    "vocab_size": 83, "d_model": 36, "d_kv": 10, "d_ff": 50, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 15, "layer_norm_epsilon": 1e-2,
}  # fmt: skip


def config(**more: Any) -> Any:
    return T5Config(**SIZES, **more)


@pytest.mark.parametrize("more", [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}])
def test_t5(tmp_path: Path, more: dict[str, Any]) -> None:
    seq2seq_parity(sharpened(T5ForConditionalGeneration(config(**more)), 1.0), tmp_path, 83)


def test_mt5(tmp_path: Path) -> None:
    seq2seq_parity(sharpened(MT5ForConditionalGeneration(MT5Config(**SIZES)), 1.0), tmp_path, 83)


def test_logits_with_a_table_of_their_own(tmp_path: Path) -> None:
    """As the published files of T5 1.1 have it, which transformers writes no more."""
    theirs = sharpened(T5ForConditionalGeneration(config(feed_forward_proj="gated-gelu")), 1.0)
    theirs.save_pretrained(tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["lm_head.weight"] = table = torch.randn(83, 36)
    save_file(tensors, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    said = json.loads((tmp_path / "hf" / "config.json").read_text())
    del said["scale_decoder_outputs"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**said, "tie_word_embeddings": False}))
    _, ours = import_checkpoint(tmp_path / "hf")
    given = {"input_ids": drawn(83, 23, 2), "decoder_input_ids": drawn(83, 19, 3)}
    with torch.no_grad():
        wanted = theirs(**given, output_hidden_states=True).decoder_hidden_states[-1] @ table.T
        assert apart(ours(**given).logits, wanted) < TOLERANCE


def test_every_option_counts(tmp_path: Path) -> None:
    sharpened(T5ForConditionalGeneration(config()), 1.0).save_pretrained(tmp_path / "hf")
    found = broken_by(
        tmp_path, INPUTS, "model.layer.attention.scale=null", "model.decoder.layer.cross_attention.scale=null",
        "model.position.max_distance=128", "model.norm.eps=1.0e-6", "model.layer.norm.eps=1.0e-6",
        "model.layer.feedforward.activation=gelu",
    )  # fmt: skip
    assert min(found.values()) > 1e-4, found
