"""Longformer from its config.json, against transformers, with global tokens and without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from alone import changed_by, pair, rows_alone
from peers import TOLERANCE, apart, checked
from torch import Tensor
from transformers import (
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerModel,
)
from two_sided import drawn, gradients, masks, sharpened

import transom
from transom.errors import SpecError
from transom.interop import family_spec, import_checkpoint
from transom.registry.spec import load_spec

NAME = "global_attention_mask"


def config(**more: Any) -> Any:
    options = {"attention_window": [4, 12], "hidden_act": "gelu_new", "num_labels": 5, "pad_token_id": 1}
    return LongformerConfig(
        vocab_size=83, hidden_size=36, num_hidden_layers=2, num_attention_heads=4, intermediate_size=50,
        max_position_embeddings=75, type_vocab_size=3, layer_norm_eps=1e-2, **options | more,
    )  # fmt: skip


def given(length: int, chosen: bool = True) -> dict[str, Tensor]:
    """Return inputs (3, T), the first row without a global token."""
    inputs = {"input_ids": drawn(83, length, 1), "token_type_ids": torch.arange(3 * length).reshape(3, -1) % 3}
    if chosen:
        inputs[NAME] = (torch.rand(3, length, generator=torch.Generator().manual_seed(4)) < 0.2).long()
        inputs[NAME][0] = 0
    return inputs


@torch.no_grad()
def spreads(theirs: Any, **inputs: Tensor) -> float:
    """Return the smallest spread of scores, of those that are seen."""
    layers = theirs(**inputs, output_attentions=True).attentions
    # Weights of 0 are outside, or of a token that asks otherwise.
    rows = [[row[row > 0].log() for row in layer.flatten(0, 2)] for layer in layers]
    return min(torch.stack([row.var() for row in layer if len(row) > 2]).mean().sqrt().item() for layer in rows)


@pytest.mark.parametrize(
    ("model", "names", "options"),
    [
        (LongformerForMaskedLM, {"head": "logits", "words": "logits"}, {}),
        (LongformerForMaskedLM, {"head": "logits", "words": "logits"}, {"attention_window": 6, "pad_token_id": 0}),
        (LongformerForSequenceClassification, {"classes": "logits"}, {}),
        (LongformerForTokenClassification, {"tokens": "logits"}, {"attention_window": [4, 4], "hidden_act": "relu"}),
    ],
)
def test_longformer(tmp_path: Path, model: Any, names: Mapping[str, str], options: dict[str, Any]) -> None:
    theirs = sharpened(model(config(**options)), 3.0)
    assert spreads(theirs, **given(61)) > 2
    ours, errors = pair(theirs, tmp_path), []
    names = {own: other for own, other in names.items() if own in ours.heads}
    for length in (61, 43, 23, 5):
        for mask in (torch.ones(3, length, dtype=torch.int64), *masks(length)):
            for chosen in (True, False):
                inputs = given(length, chosen)
                if model is LongformerForSequenceClassification and chosen:
                    inputs[NAME][:, [0, -1]] = 1  # where a call says that there is none, the peer's has none
                errors += rows_alone(theirs, ours, inputs, mask, names)
    right, inputs = masks(61)[0], given(61)
    if model is not LongformerForSequenceClassification:
        whole = theirs(**inputs, attention_mask=right).logits
        found = ours(**inputs, attention_mask=right).logits
        errors.append(apart(found[right.bool()], whole[right.bool()]))
    assert (error := gradients(theirs, ours, names, given(61, model is LongformerForMaskedLM))) < 1e-4, error
    checked(theirs, errors)


@torch.no_grad()
def test_a_span_is_two_logits_a_token(tmp_path: Path) -> None:
    theirs = sharpened(LongformerForQuestionAnswering(config(num_labels=2)))
    ours, inputs = pair(theirs, tmp_path), given(61, chosen=False)
    inputs["input_ids"][:, [7, 8, 60]] = 2  # the question's end, twice, and the text's
    wanted = theirs(**inputs)
    chosen = (torch.arange(61) < 7).long().expand(3, -1)
    spans = torch.stack([wanted.start_logits, wanted.end_logits], -1)
    assert apart(ours(**inputs, global_attention_mask=chosen).logits, spans) < TOLERANCE


@torch.no_grad()
def test_a_choice_is_one_logit_a_text(tmp_path: Path) -> None:
    theirs = sharpened(LongformerForMultipleChoice(config()))
    ours, inputs = pair(theirs, tmp_path), given(61)
    wanted = theirs(**{name: ids[None] for name, ids in inputs.items()}).logits
    assert apart(ours(**inputs).logits.T, wanted) < TOLERANCE


@torch.no_grad()
def test_without_a_head(tmp_path: Path) -> None:
    theirs = sharpened(LongformerModel(config()))
    ours, inputs = pair(theirs, tmp_path), given(61)
    found, wanted = ours(**inputs), theirs(**inputs)
    assert apart(found.hidden, wanted.last_hidden_state) < TOLERANCE
    assert apart(found.logits, wanted.pooler_output) < TOLERANCE


def test_every_option_counts(tmp_path: Path) -> None:
    sharpened(LongformerForMaskedLM(config(attention_window=6))).save_pretrained(tmp_path / "hf")
    found = changed_by(
        tmp_path, given(61), "model.position.offset=0", "model.embedding.norm.eps=1e-12", "model.layer.norm.eps=1e-12",
        "model.layer.feedforward.activation=gelu", "model.layer.attention.window=4", "model.layer.attention.first=true",
    )  # fmt: skip
    assert min(found.values()) > 1e-4, found


def test_each_layer_has_its_window(tmp_path: Path) -> None:
    LongformerForMaskedLM(config()).save_pretrained(tmp_path)
    assert [layer.attention.config.window for layer in family_spec(tmp_path).model.stacks["encoder"].layers] == [4, 12]
    text = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    odd = {"list of 2": [4, 6, 8], "attention_window.1: 5 has no half": [4, 5], "for each layer": [], "window": "all"}
    for message, wrong in odd.items():
        (tmp_path / "config.json").write_text(json.dumps(text | {"attention_window": wrong}), encoding="utf-8")
        with pytest.raises(SpecError, match=message):
            family_spec(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "model.layer.attention={kind: local, window: 16}", "model.layer.norm.kind=rms", "model.position.kind=rope",
        "model.layer.attention.kind=big_bird", "model.position.kind=alibi",
    ],
)  # fmt: skip
def test_parts_are_swapped(override: str) -> None:
    transom.compose(load_spec("longformer", [override]), device="meta")


def test_what_the_peer_does_not_read_is_refused(tmp_path: Path) -> None:
    """It reads both ways whatever `is_decoder` says."""
    theirs = [sharpened(LongformerForMaskedLM(config(is_decoder=way))) for way in (False, True)]
    with torch.no_grad():
        assert torch.equal(*(model(**given(23)).logits for model in theirs))
    theirs[1].save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="is_decoder: true is not supported; only false is: transformers reads both"):
        family_spec(tmp_path)


def test_a_causal_stack_is_refused() -> None:
    with pytest.raises(SpecError, match="all tokens see the global ones"):
        transom.compose(load_spec("tiny_gpt", ["model.layer.attention={kind: longformer, window: 8}"]), device="meta")


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    sharpened(LongformerForMaskedLM(config())).save_pretrained(tmp_path / "hf")
    _, ours = import_checkpoint(tmp_path / "hf")
    transom.export(ours, tmp_path / "onnx")
