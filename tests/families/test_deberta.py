"""DeBERTa v2 and v3 from their config.json, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peers import TOLERANCE, apart
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2ForMultipleChoice,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    DebertaV2Model,
)
from two_sided import broken_by, drawn, encoder_parity, sharpened, there_and_back

import transom
from transom.errors import SpecError
from transom.interop import import_checkpoint, import_run
from transom.registry.compose import compose
from transom.registry.spec import load_spec

INPUTS = {"input_ids": 83, "token_type_ids": 3}
PLAIN = {"type_vocab_size": 0, "conv_kernel_size": 0}


def config(**more: Any) -> Any:
    options = {
        "vocab_size": 83, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 50,
        "max_position_embeddings": 29, "type_vocab_size": 3, "layer_norm_eps": 1e-2, "hidden_act": "gelu_new",
        "relative_attention": True, "position_buckets": 9, "max_relative_positions": 21, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False, "conv_kernel_size": 3,
        "conv_act": "gelu", "pooler_hidden_act": "relu",
    }  # fmt: skip
    return DebertaV2Config(**options | more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"share_att_key": False, "norm_rel_ebd": "none", "conv_groups": 4, "conv_kernel_size": 5, "conv_act": "tanh"},
        {"share_att_key": False, "pos_att_type": ["c2p"], "position_buckets": -1, "max_relative_positions": 7},
        {"pos_att_type": "p2c", "position_biased_input": True, "embedding_size": 20, "position_buckets": 8},
        {"embedding_size": 20, "position_buckets": -1, "max_relative_positions": -1, "conv_kernel_size": 0},
        {"relative_attention": False, "position_biased_input": True, "norm_rel_ebd": "none"},
        {"relative_attention": False, "position_biased_input": True, "pos_att_type": None, "norm_rel_ebd": "none"},
        {"legacy": False, "position_biased_input": True},
    ],
)
def test_deberta(tmp_path: Path, more: dict[str, Any]) -> None:
    theirs = sharpened(DebertaV2ForMaskedLM(config(**more)), by=3.0)
    encoder_parity(theirs, tmp_path, INPUTS, {"words": "logits"})


@pytest.mark.parametrize(
    ("model", "head"), [(DebertaV2ForSequenceClassification, "classes"), (DebertaV2ForTokenClassification, "tokens")]
)
def test_tasks(tmp_path: Path, model: Any, head: str) -> None:
    encoder_parity(sharpened(model(config(num_labels=5))), tmp_path, INPUTS, {head: "logits"})


@torch.no_grad()
def test_a_span_is_two_logits_a_token(tmp_path: Path) -> None:
    theirs = sharpened(DebertaV2ForQuestionAnswering(config()))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    wanted = theirs(input_ids=ids)
    assert apart(ours(input_ids=ids).logits, torch.stack([wanted.start_logits, wanted.end_logits], -1)) < TOLERANCE


@torch.no_grad()
def test_a_choice_is_one_logit_a_text(tmp_path: Path) -> None:
    theirs = sharpened(DebertaV2ForMultipleChoice(config()))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    assert apart(ours(input_ids=ids).logits.T, theirs(input_ids=ids[None]).logits) < TOLERANCE


@torch.no_grad()
def test_without_a_head(tmp_path: Path) -> None:
    theirs = sharpened(DebertaV2Model(config()))
    theirs.save_pretrained(tmp_path / "hf")
    _, ours = import_checkpoint(tmp_path / "hf")
    ids = drawn(83, 23, 1)
    assert apart(ours(input_ids=ids).hidden, theirs(input_ids=ids).last_hidden_state) < TOLERANCE


def test_every_option_counts(tmp_path: Path) -> None:
    sharpened(DebertaV2ForMaskedLM(config())).save_pretrained(tmp_path / "hf")
    found = broken_by(
        tmp_path, INPUTS, "model.embedding.norm.eps=1e-7", "model.layer.norm.eps=1e-7",
        "model.position.0.norm.eps=1e-7", "model.layer.feedforward.activation=gelu", "model.layer.attention.terms=1",
        "model.position.0.terms=[c2p]", "model.position.0.terms=[p2c]", "model.position.0.max_distance=15",
        "model.first.beside.activation=tanh",
    )  # fmt: skip
    assert min(found.values()) > 1e-4, found


def test_far_distances_share_a_bucket_as_the_peer_s_do(tmp_path: Path) -> None:
    more = {
        "position_buckets": 32,
        "max_relative_positions": 128,
        "max_position_embeddings": 301,
        "num_hidden_layers": 1,
    }
    theirs = sharpened(DebertaV2ForMaskedLM(config(**more)))
    encoder_parity(theirs, tmp_path, INPUTS, {"words": "logits"}, length=277)


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    sharpened(DebertaV2ForMaskedLM(config())).save_pretrained(tmp_path / "hf")
    run = import_run(tmp_path / "hf", None, tmp_path / "run")
    transom.export(transom.load(run), tmp_path / "onnx")


SMALL = ["model.d_model=36", "model.embedding.vocab_size=83", "model.layers=[{repeat: 2}]", "model.max_seq_len=64"]


@pytest.mark.parametrize(
    "swap",
    [
        ["model.layer.attention.kind=local", "model.layer.attention.window=7"],
        ["model.layer.attention.kind=sparse"],
        ["model.layer.attention.n_kv_heads=4"],
        ["model.layer.attention.qk_norm=rms"],
        ["model.layer.norm=rms"],
        ["model.layer.placement=pre", "model.norm=layer"],
        ["model.position=alibi"],
        ["model.position=[disentangled, rope]", "model.layer.attention.head_dim=4"],
        ["model.topology=decoder", "objective=causal_lm"],
    ],
)
@torch.no_grad()
def test_swaps(swap: list[str]) -> None:
    model = compose(load_spec("deberta", [*SMALL, *swap])).eval()
    ids = drawn(83, 23, 1)
    mask = (torch.arange(23) < torch.tensor([23, 17, 9])[:, None]).long()
    found = model(input_ids=ids, attention_mask=mask).logits
    alone = model(input_ids=ids[1:2, :17]).logits
    assert apart(found[1, :17], alone[0]) < TOLERANCE


@pytest.mark.parametrize("kind", ["full", "local", "sparse"])
@torch.no_grad()
def test_a_decoder_of_it_goes_step_by_step(kind: str) -> None:
    swaps = ["model.topology=decoder", "objective=causal_lm", f"model.layer.attention.kind={kind}"]
    window = ["model.layer.attention.window=7"] if kind == "local" else []
    model = sharpened(compose(load_spec("deberta", [*SMALL, *swaps, *window])))
    ids = drawn(83, 23, 1)
    whole, state, logits = model(input_ids=ids).logits, model.empty_state(3), []
    for piece in ids.split([7, *[1] * 16], dim=1):
        out = model(input_ids=piece, state=state)
        state, logits = out.state, [*logits, out.logits]
    assert apart(torch.cat(logits, 1), whole) < TOLERANCE


@pytest.mark.parametrize(
    ("swap", "says"),
    [
        ("model.layer.attention=linear", "linear can't take a bias on the scores"),
        ("model.layer.attention=lstm", "lstm can't take a bias on the scores"),
        ("model.position.0.terms=[]", "terms: [] should be c2p, p2c, or both"),
        ("model.position.0.buckets=3", "buckets: 3 can't be split"),
        ("model.layer.attention.scale=0.5", "terms: 3 must be at least 1, and leave scale out"),
        ("model.layer.unnormed=[attention]", "placement 'post' has no norm before each sublayer"),
    ],
)
def test_what_does_not_compose_is_refused(swap: str, says: str) -> None:
    with pytest.raises(SpecError) as refused:
        compose(load_spec("deberta", [*SMALL, swap]), device="meta")
    assert says in str(refused.value)
