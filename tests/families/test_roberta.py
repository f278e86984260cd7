"""RoBERTa, of one language and of many, from its config.json, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peers import TOLERANCE, apart
from transformers import (
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
)
from two_sided import broken_by, drawn, encoder_parity, sharpened, there_and_back

import transom

INPUTS = {"input_ids": 83, "token_type_ids": 3}
SIZES = {
    "vocab_size": 83, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 50,
    "max_position_embeddings": 31, "type_vocab_size": 3, "layer_norm_eps": 1e-2, "hidden_act": "gelu_new",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "model"), [(RobertaConfig, RobertaForMaskedLM), (XLMRobertaConfig, XLMRobertaForMaskedLM)]
)
def test_roberta(tmp_path: Path, config: Any, model: Any) -> None:
    encoder_parity(sharpened(model(config(**SIZES))), tmp_path, INPUTS, {"head": "logits"})
    found = broken_by(tmp_path, INPUTS, "model.position.offset=0", "model.embedding.norm.eps=1e-5")
    assert min(found.values()) > 1e-4, found


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (XLMRobertaModel, {"pooled": "pooler_output"}),
        (XLMRobertaForSequenceClassification, {"classes": "logits"}),
        (XLMRobertaForTokenClassification, {"tokens": "logits"}),
        (XLMRobertaForQuestionAnswering, {"spans": "start_logits+end_logits"}),
    ],
)
def test_heads_of_xlm_roberta(tmp_path: Path, model: Any, names: dict[str, str]) -> None:
    config = XLMRobertaConfig(**SIZES, num_labels=2 if "spans" in names else 5)
    encoder_parity(sharpened(model(config), 3.0), tmp_path, INPUTS, names)


@torch.no_grad()
def test_a_choice_is_one_logit_a_text(tmp_path: Path) -> None:
    theirs = sharpened(XLMRobertaForMultipleChoice(XLMRobertaConfig(**SIZES)))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    assert apart(ours(input_ids=ids).logits.T, theirs(input_ids=ids[None]).logits) < TOLERANCE


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    sharpened(XLMRobertaForMaskedLM(XLMRobertaConfig(**SIZES))).save_pretrained(tmp_path / "hf")
    _, model = transom.import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows
