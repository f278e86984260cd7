"""BigBird from its config.json, against transformers: rows that take blocks, and rows that are too short for them."""

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
    BigBirdConfig,
    BigBirdForCausalLM,
    BigBirdForMaskedLM,
    BigBirdForMultipleChoice,
    BigBirdForPreTraining,
    BigBirdForQuestionAnswering,
    BigBirdForSequenceClassification,
    BigBirdForTokenClassification,
    BigBirdModel,
)
from two_sided import drawn, gradients, masks, sharpened, spreads

import transom
from transom.errors import SpecError
from transom.interop import family_spec, import_checkpoint
from transom.registry.spec import load_spec

SHORT = (5 + 2 * 2) * 4  # tokens that the peer gives full attention at most


def config(**more: Any) -> Any:
    options = {"block_size": 4, "num_random_blocks": 2, "rescale_embeddings": True}
    return BigBirdConfig(
        vocab_size=83, hidden_size=36, num_hidden_layers=2, num_attention_heads=4, intermediate_size=50,
        max_position_embeddings=67, type_vocab_size=3, layer_norm_eps=1e-2, sep_token_id=2, **options | more,
    )  # fmt: skip


def given(length: int) -> dict[str, Tensor]:
    return {"input_ids": drawn(83, length, 1), "token_type_ids": torch.arange(3 * length).reshape(3, -1) % 3}


class Asked:
    """Ask the peer, which stays with full attention once a row was short, as if each time were the first."""

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def __call__(self, **inputs: Any) -> Any:
        base = getattr(self.theirs, "bert", self.theirs)
        base.set_attention_type(self.theirs.config.attention_type)
        return self.theirs(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)


@pytest.mark.parametrize(
    ("model", "names", "options"),
    [
        (BigBirdForPreTraining, {"words": "prediction_logits", "next": "seq_relationship_logits"}, {}),
        (BigBirdForMaskedLM, {"words": "logits"}, {"use_bias": False, "num_random_blocks": 1}),
        (BigBirdForMaskedLM, {"words": "logits"}, {"attention_type": "original_full"}),
        (BigBirdForSequenceClassification, {"classes": "logits"}, {"num_labels": 5, "hidden_act": "gelu"}),
        (BigBirdForTokenClassification, {"tokens": "logits"}, {"num_labels": 5, "block_size": 3, "hidden_act": "relu"}),
    ],
)
def test_big_bird(tmp_path: Path, model: Any, names: Mapping[str, str], options: dict[str, Any]) -> None:
    theirs = sharpened(model(config(**options)), 3.0)
    assert spreads(theirs, **given(61)) > 2
    ours, peer, errors = pair(theirs, tmp_path), Asked(theirs), []
    for length in (61, 52, 43, SHORT + 1, SHORT, 23, 5):
        for mask in (torch.ones(3, length, dtype=torch.int64), *masks(length)):
            errors += rows_alone(peer, ours, given(length), mask, names)
    assert (error := gradients(peer, ours, names, given(61))) < 1e-4, error
    checked(theirs, errors)


@torch.no_grad()
def test_a_span_is_two_logits_a_token(tmp_path: Path) -> None:
    theirs = sharpened(BigBirdForQuestionAnswering(config()))
    ours, inputs = pair(theirs, tmp_path), given(61)
    inputs["input_ids"][:, 7] = 2  # the question's end: the peer takes its tokens out of the competition
    wanted = Asked(theirs)(**inputs)
    spans = torch.stack([wanted.start_logits, wanted.end_logits], -1)
    found = ours(**inputs).logits
    assert apart(found[:, 8:], spans[:, 8:]) < TOLERANCE
    assert apart(found[:, :1], spans[:, :1]) < TOLERANCE


@pytest.mark.parametrize(
    ("model", "names", "more"),
    [
        (BigBirdForCausalLM, {"words": "logits"}, {}),
        (BigBirdForCausalLM, {"words": "logits"}, {"use_bias": False, "hidden_act": "relu"}),
        (BigBirdForTokenClassification, {"tokens": "logits"}, {"num_labels": 5}),
    ],
)
def test_one_way_it_is_a_decoder(tmp_path: Path, model: Any, names: dict[str, str], more: dict[str, Any]) -> None:
    theirs = sharpened(model(config(is_decoder=True, attention_type="original_full", **more)), 3.0)
    assert spreads(theirs, **given(61)) > 2
    ours, errors = pair(theirs, tmp_path), []
    for mask in (torch.ones(3, 61, dtype=torch.int64), *masks(61)):
        errors += rows_alone(theirs, ours, given(61), mask, names)
    assert gradients(theirs, ours, names, given(61)) < 1e-4
    state, logits = ours.empty_state(3), []
    with torch.no_grad():
        whole = ours(**given(61)).logits
        for start, end in ((0, 45), *((at, at + 1) for at in range(45, 61))):
            out = ours(**{name: ids[:, start:end] for name, ids in given(61).items()}, state=state)
            state, logits = out.state, [*logits, out.logits]
    checked(theirs, [*errors, apart(torch.cat(logits, 1), whole)])


@torch.no_grad()
def test_a_choice_is_one_logit_a_text(tmp_path: Path) -> None:
    theirs = sharpened(BigBirdForMultipleChoice(config()))
    ours, ids = pair(theirs, tmp_path), drawn(83, 61, 1)
    assert apart(ours(input_ids=ids).logits.T, Asked(theirs)(input_ids=ids[None]).logits) < TOLERANCE


@torch.no_grad()
def test_without_a_head(tmp_path: Path) -> None:
    theirs = sharpened(BigBirdModel(config()))
    ours, ids = pair(theirs, tmp_path), drawn(83, 61, 1)
    found, wanted = ours(input_ids=ids), Asked(theirs)(input_ids=ids)
    assert apart(found.hidden, wanted.last_hidden_state) < TOLERANCE
    assert apart(found.logits, wanted.pooler_output) < TOLERANCE


def test_every_option_counts(tmp_path: Path) -> None:
    sharpened(BigBirdForPreTraining(config())).save_pretrained(tmp_path / "hf")
    found = changed_by(
        tmp_path, given(61), "model.embedding.scale=1.0", "model.embedding.norm.eps=1e-12",
        "model.layer.norm.eps=1e-12", "model.layer.feedforward.activation=gelu", "model.layer.attention.random=drawn",
        "model.layer.attention.n_random=1", "model.layer.attention.block=5", "model.layer.attention.kind=full",
    )  # fmt: skip
    assert min(found.values()) > 1e-4, found
    short = changed_by(tmp_path, given(23), "model.layer.attention.short=blocks")
    assert min(short.values()) > 1e-4, short


@pytest.mark.parametrize(
    ("field", "value"),
    [("is_decoder", True), ("attention_type", "sparse"), ("add_cross_attention", True), ("hidden_act", "prelu")],
)
def test_what_is_not_supported_is_refused(tmp_path: Path, field: str, value: object) -> None:
    made = config()
    BigBirdForMaskedLM(made).save_pretrained(tmp_path)
    text = made.to_dict() | {"architectures": ["BigBirdForMaskedLM"], field: value}
    (tmp_path / "config.json").write_text(json.dumps(text), encoding="utf-8")
    with pytest.raises(SpecError, match=field):
        family_spec(tmp_path)


@pytest.mark.parametrize(
    "override",
    ["model.layer.attention={kind: local, window: 16}", "model.layer.norm.kind=rms", "model.position.kind=rope"],
)
def test_parts_are_swapped(override: str) -> None:
    transom.compose(load_spec("big_bird", [override]), device="meta")


def test_a_causal_stack_is_refused() -> None:
    with pytest.raises(SpecError, match="all tokens see the last block"):
        transom.compose(load_spec("tiny_gpt", ["model.layer.attention.kind=big_bird"]), device="meta")


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    # So small blocks that the longest rows of the report take them.
    sharpened(BigBirdForPreTraining(config(block_size=2))).save_pretrained(tmp_path / "hf")
    _, ours = import_checkpoint(tmp_path / "hf")
    transom.export(ours, tmp_path / "onnx")
