"""ModernBERT from its config.json, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import TOLERANCE, apart
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
)
from two_sided import broken_by, drawn, encoder_parity, sharpened, there_and_back

import transom
from transom.errors import SpecError
from transom.interop import family_spec, import_checkpoint, import_run
from transom.registry.compose import compose
from transom.registry.spec import load_spec

INPUTS = {"input_ids": 83}
BIASED = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}


def config(**more: Any) -> Any:
    options = {
        "vocab_size": 83, "hidden_size": 36, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 50,
        "max_position_embeddings": 29, "local_attention": 9, "norm_eps": 1e-2, "hidden_activation": "gelu_new",
        "classifier_activation": "silu", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
        "sep_token_id": 2,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0}},
    }  # fmt: skip
    return ModernBertConfig(**options | more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        BIASED | {"decoder_bias": False, "tie_word_embeddings": False},
        {"global_attn_every_n_layers": 2, "local_attention": 4},
        {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
    ],
)
def test_modernbert(tmp_path: Path, more: dict[str, Any]) -> None:
    encoder_parity(sharpened(ModernBertForMaskedLM(config(**more))), tmp_path, INPUTS, {"words": "logits"})


YARN = {"rope_type": "yarn", "rope_theta": 30.0, "factor": 4.0, "original_max_position_embeddings": 300,
        "beta_fast": 4.0, "mscale": 1.7, "mscale_all_dim": 0.4}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 300,
          "low_freq_factor": 0.5, "high_freq_factor": 3.0}  # fmt: skip


@pytest.mark.parametrize(
    ("near", "far", "needed"),
    [
        (YARN, LLAMA3, ("position.scaling.mscale=null", "layer.position.scaling.slow=1.0")),
        (LLAMA3, YARN, ("position.scaling=null", "layer.position.scaling=null")),
        ({"rope_type": "linear", "rope_theta": 30.0, "factor": 2.0}, YARN | {"attention_factor": 1.4},
         ("position.scaling.factor=3.0", "layer.position.scaling.magnitude=1.0")),
    ],
)  # fmt: skip
def test_scaled_rotations(tmp_path: Path, near: Any, far: Any, needed: tuple[str, ...]) -> None:
    ropes = {"sliding_attention": dict(near), "full_attention": dict(far)}
    encoder_parity(
        sharpened(ModernBertForMaskedLM(config(rope_parameters=ropes))), tmp_path, INPUTS, {"words": "logits"}
    )
    found = broken_by(tmp_path, INPUTS, *(f"model.{option}" for option in needed))
    assert min(found.values()) > 1e-4, found


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("more", [{}, BIASED])
def test_classes(tmp_path: Path, pooling: str, more: dict[str, Any]) -> None:
    theirs = ModernBertForSequenceClassification(config(num_labels=5, classifier_pooling=pooling, **more))
    encoder_parity(sharpened(theirs), tmp_path, INPUTS, {"classes": "logits"})


def test_classes_of_tokens(tmp_path: Path) -> None:
    theirs = ModernBertForTokenClassification(config(num_labels=5, **BIASED))
    encoder_parity(sharpened(theirs), tmp_path, INPUTS, {"tokens": "logits"})


@torch.no_grad()
def test_a_span_is_two_logits_a_token(tmp_path: Path) -> None:
    theirs = sharpened(ModernBertForQuestionAnswering(config()))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    wanted = theirs(input_ids=ids)
    assert apart(ours(input_ids=ids).logits, torch.stack([wanted.start_logits, wanted.end_logits], -1)) < TOLERANCE


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_a_choice_is_one_logit_a_text(tmp_path: Path, pooling: str) -> None:
    theirs = sharpened(ModernBertForMultipleChoice(config(classifier_pooling=pooling)))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    assert (
        apart(ours(input_ids=ids).logits.T, theirs(input_ids=ids[None], attention_mask=torch.ones_like(ids)).logits)
        < TOLERANCE
    )


@torch.no_grad()
def test_without_a_head(tmp_path: Path) -> None:
    theirs = sharpened(ModernBertModel(config()))
    theirs.save_pretrained(tmp_path / "hf")
    _, ours = import_checkpoint(tmp_path / "hf")
    ids = drawn(83, 23, 1)
    assert apart(ours(input_ids=ids).hidden, theirs(input_ids=ids).last_hidden_state) < TOLERANCE


def test_every_option_counts(tmp_path: Path) -> None:
    sharpened(ModernBertForMaskedLM(config())).save_pretrained(tmp_path / "hf")
    near = "model.layers.1.pattern.0"
    found = broken_by(
        tmp_path, INPUTS, "model.embedding.norm.eps=1e-5", "model.layer.norm.eps=1e-5", "model.norm.eps=1e-5",
        "model.layer.feedforward.activation=gelu", "model.position.theta=500", "model.layer.position.theta=30",
        f"{near}.attention.around=7", f"{near}.attention.around=11", f"{near}.attention.kind=full",
    )  # fmt: skip
    assert min(found.values()) > 1e-4, found


@torch.no_grad()
def test_an_older_file_says_the_same(tmp_path: Path) -> None:
    theirs = sharpened(ModernBertForMaskedLM(config()))
    theirs.save_pretrained(tmp_path / "hf")
    _, ours = import_checkpoint(tmp_path / "hf")
    ids = drawn(83, 23, 1)
    file = tmp_path / "hf" / "config.json"
    older = json.loads(file.read_text(encoding="utf-8"))
    del older["rope_parameters"], older["layer_types"]
    older |= {"global_attn_every_n_layers": 3, "global_rope_theta": 500.0, "local_rope_theta": 30.0}
    file.write_text(json.dumps(older), encoding="utf-8")
    _, again = import_checkpoint(tmp_path / "hf")
    assert torch.equal(again(input_ids=ids).logits, ours(input_ids=ids).logits)
    file.write_text(json.dumps(older | {"global_attn_every_n_layers": 0}), encoding="utf-8")
    with pytest.raises(SpecError, match="global_attn_every_n_layers: should be a whole number, 1 or more, not 0"):
        family_spec(tmp_path / "hf")


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    sharpened(ModernBertForMaskedLM(config())).save_pretrained(tmp_path / "hf")
    run = import_run(tmp_path / "hf", None, tmp_path / "run")
    transom.export(transom.load(run), tmp_path / "onnx")


SMALL = ["model.d_model=48", "model.embedding.vocab_size=83", "model.max_seq_len=64"]


@pytest.mark.parametrize(
    "swap",
    [
        ["model.layer.norm=rms"],
        ["model.layer.placement=sandwich"],
        ["model.layer.placement=parallel_norms"],
        ["model.position=alibi", "model.layer.position=alibi"],
        ["model.first.unnormed=[]"],
        ["model.first.beside=convolution"],
        ["model.layers=[{repeat: 2}]", "model.layer.attention.kind=sparse"],
        ["model.topology=decoder", "objective=causal_lm"],
    ],
)
@torch.no_grad()
def test_swaps(swap: list[str]) -> None:
    model = compose(load_spec("modernbert", [*SMALL, *swap])).eval()
    ids = drawn(83, 23, 1)
    mask = (torch.arange(23) < torch.tensor([23, 17, 9])[:, None]).long()
    found = model(input_ids=ids, attention_mask=mask).logits
    alone = model(input_ids=ids[1:2, :17]).logits
    assert apart(found[1, :17], alone[0]) < TOLERANCE
