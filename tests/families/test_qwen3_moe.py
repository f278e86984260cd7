"""Qwen3 with experts from its config.json, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import SIZES
from peers import TOLERANCE, apart, changed, parity, sharpened
from published import spec_of
from transformers import (
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3MoeForQuestionAnswering,
    Qwen3MoeForSequenceClassification,
    Qwen3MoeForTokenClassification,
    Qwen3MoeModel,
)

import transom
from transom.errors import SpecError
from transom.interop import import_checkpoint
from transom.registry.spec import load_spec

OPTIONS: dict[str, Any] = SIZES | {
    "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 5, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64, "rms_norm_eps": 0.1,
    "attention_bias": True, "use_sliding_window": True, "sliding_window": 7, "decoder_sparse_step": 2,
    "mlp_only_layers": [3], "moe_intermediate_size": 20, "num_experts": 7, "num_experts_per_tok": 3,
    "norm_topk_prob": True, "tie_word_embeddings": True, "hidden_act": "gelu",
    "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
}  # fmt: skip


def made(**options: Any) -> Any:
    return sharpened(Qwen3MoeForCausalLM(Qwen3MoeConfig(**OPTIONS | options)))


def config(options: dict[str, Any]) -> Any:
    """Return what the peer writes as config.json."""
    return json.loads(Qwen3MoeConfig(**options, architectures=["Qwen3MoeForCausalLM"]).to_json_string())


def test_qwen3_moe_computes_the_same_and_goes_back(tmp_path: Path) -> None:
    parity(made(), tmp_path)
    ids = torch.randint(83, (1, 23))
    for option in (
        "model.layer.feedforward.n_active=2", "model.layer.feedforward.renormalise=false",
        "model.layer.feedforward.activation=silu", "model.layer.attention.window=8",
        "model.layer.attention.qk_norm.eps=1.0e-6", "model.layer.norm.eps=1.0e-6",
        "model.position.scaling.factor=2.0",
    ):  # fmt: skip
        assert changed(tmp_path, ids, option) > 1e-4, option


def test_as_it_is_published(tmp_path: Path) -> None:
    """Experts in all layers, no window, no bias, a head of its own, weights that do not sum to 1."""
    theirs = made(
        attention_bias=False, use_sliding_window=False, decoder_sparse_step=1, mlp_only_layers=[],
        norm_topk_prob=False, tie_word_embeddings=False, hidden_act="silu",
        rope_parameters={"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
                         "original_max_position_embeddings": 16},
    )  # fmt: skip
    parity(theirs, tmp_path)
    ids = torch.randint(83, (1, 23))
    assert changed(tmp_path, ids, "model.layer.feedforward.renormalise=true") > 1e-4
    assert changed(tmp_path, ids, "model.position.scaling=null") > 1e-4


@pytest.mark.parametrize(
    "kind",
    [Qwen3MoeModel, Qwen3MoeForSequenceClassification, Qwen3MoeForTokenClassification, Qwen3MoeForQuestionAnswering],
)
@torch.no_grad()
def test_other_heads(kind: Any, tmp_path: Path) -> None:
    theirs = sharpened(kind(Qwen3MoeConfig(**OPTIONS, num_labels=5)))
    theirs.save_pretrained(tmp_path)
    _, ours = import_checkpoint(tmp_path)
    ids = torch.randint(3, 83, (3, 23), generator=torch.Generator().manual_seed(4))
    found, wanted = ours(input_ids=ids), theirs(input_ids=ids)
    if kind is Qwen3MoeModel:
        assert apart(found.hidden, wanted.last_hidden_state) < TOLERANCE
    elif kind is Qwen3MoeForQuestionAnswering:
        assert apart(found.logits, torch.stack([wanted.start_logits, wanted.end_logits], -1)) < TOLERANCE
    else:
        assert apart(found.logits, wanted.logits) < TOLERANCE


@pytest.mark.long  # as mixtral
def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    made().save_pretrained(tmp_path / "hf")
    _, model = import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows


@pytest.mark.parametrize(
    ("step", "dense", "wanted"),
    [
        (1, [], "SSSSSS"),
        (2, [], "DSDSDS"),
        (1, [0, 4], "DSSSDS"),
        (3, [2], "DDDDDS"),
        (9, None, "DDDDDD"),
    ],
)
def test_which_layers_have_experts(step: int, dense: list[int] | None, wanted: str) -> None:
    options = OPTIONS | {"num_hidden_layers": 6, "decoder_sparse_step": step, "mlp_only_layers": dense}
    layers = spec_of(config(options), "config.json").model.stacks["decoder"].layers
    kinds = [layer.feedforward.name for layer in layers]
    widths = [layer.feedforward.config.d_ff for layer in layers]
    assert "".join({"glu": "D", "experts": "S"}[kind] for kind in kinds) == wanted
    assert widths == [50 if kind == "D" else 20 for kind in wanted]


def test_layers_that_make_no_sense_are_refused() -> None:
    for options, said in (
        ({"mlp_only_layers": [5]}, r"mlp_only_layers\.0: 5 is no layer; there are 5, from 0 on"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step: should be a whole number, 1 or more, not 0"),
    ):
        with pytest.raises(SpecError, match=said):
            spec_of(config(OPTIONS | options), "config.json")


@pytest.mark.parametrize(
    "changes",
    [
        ("model.layer.attention.kind=linear",),
        ("model.layer.attention.kind=latent",),
        ("model.layer.feedforward.kind=glu",),
        ("model.layer.norm=layer", "model.position=alibi"),
    ],
)
def test_its_parts_can_be_swapped(changes: tuple[str, ...]) -> None:
    transom.compose(load_spec("qwen3_moe", changes), "meta")
