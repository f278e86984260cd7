"""RoBERTa, of one language and of many, from its config.json, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alone import rows_alone
from peers import TOLERANCE, apart, checked
from torch import Tensor
from transformers import (
    LongformerConfig,
    LongformerForMaskedLM,
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
from two_sided import broken_by, drawn, encoder_parity, gradients, masks, sharpened, there_and_back

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


class Placed:
    """Tell the peer the positions, which it can't count where no token is padding."""

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def __call__(self, input_ids: Tensor, **inputs: Any) -> Any:
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return self.theirs(input_ids=input_ids, position_ids=places, **inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)


@pytest.mark.parametrize(
    ("config", "model", "more"),
    [
        (RobertaConfig, RobertaForMaskedLM, {}),
        (XLMRobertaConfig, XLMRobertaForMaskedLM, {}),
        (LongformerConfig, LongformerForMaskedLM, {"attention_window": [4, 12]}),
    ],
)
def test_no_token_is_padding(tmp_path: Path, config: Any, model: Any, more: dict[str, Any]) -> None:
    """All rows of the table are then positions."""
    theirs = sharpened(model(config(**SIZES, **more, pad_token_id=None)))
    peer, ours, ids = Placed(theirs), there_and_back(theirs, tmp_path), drawn(83, 31, 1)
    with pytest.raises(TypeError):
        theirs(input_ids=ids)
    errors = []
    for mask in (torch.ones_like(ids), *masks(31)):
        errors += rows_alone(peer, ours, {"input_ids": ids}, mask, {"words": "logits"})
    assert gradients(peer, ours, {"words": "logits"}, {"input_ids": ids}) < 1e-4
    checked(theirs, errors)


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
