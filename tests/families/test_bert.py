"""BERT from its config.json, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peers import TOLERANCE, apart
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from two_sided import broken_by, drawn, encoder_parity, sharpened, there_and_back

from transom.interop import import_checkpoint

INPUTS = {"input_ids": 83, "token_type_ids": 3}


def config(**more: Any) -> Any:
    return BertConfig(
        vocab_size=83, hidden_size=36, num_hidden_layers=2, num_attention_heads=4, intermediate_size=50,
        max_position_embeddings=29, type_vocab_size=3, layer_norm_eps=1e-2, hidden_act="gelu_new",
        **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (BertForPreTraining, {"words": "prediction_logits", "next": "seq_relationship_logits"}),
        (BertForMaskedLM, {"words": "logits"}),
        (BertForSequenceClassification, {"classes": "logits"}),
        (BertForTokenClassification, {"tokens": "logits"}),
    ],
)
def test_bert(tmp_path: Path, model: Any, names: dict[str, str]) -> None:
    encoder_parity(sharpened(model(config(num_labels=5))), tmp_path, INPUTS, names)


@torch.no_grad()
def test_a_span_is_two_logits_a_token(tmp_path: Path) -> None:
    theirs = sharpened(BertForQuestionAnswering(config()))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    wanted = theirs(input_ids=ids)
    assert apart(ours(input_ids=ids).logits, torch.stack([wanted.start_logits, wanted.end_logits], -1)) < TOLERANCE


@torch.no_grad()
def test_a_choice_is_one_logit_a_text(tmp_path: Path) -> None:
    theirs = sharpened(BertForMultipleChoice(config()))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    assert apart(ours(input_ids=ids).logits.T, theirs(input_ids=ids[None]).logits) < TOLERANCE


@torch.no_grad()
def test_without_a_head(tmp_path: Path) -> None:
    theirs = sharpened(BertModel(config()))
    theirs.save_pretrained(tmp_path / "hf")
    _, ours = import_checkpoint(tmp_path / "hf")
    ids = drawn(83, 23, 1)
    assert apart(ours(input_ids=ids).hidden, theirs(input_ids=ids).last_hidden_state) < TOLERANCE


def test_every_option_counts(tmp_path: Path) -> None:
    sharpened(BertForPreTraining(config())).save_pretrained(tmp_path / "hf")
    found = broken_by(
        tmp_path, INPUTS, "model.embedding.norm.eps=1e-12", "model.layer.norm.eps=1e-12",
        "model.layer.feedforward.activation=gelu",
    )  # fmt: skip
    assert min(found.values()) > 1e-4, found
