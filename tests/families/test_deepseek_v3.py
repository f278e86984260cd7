"""DeepSeek-V3 from its config.json, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import SIZES
from peers import TOLERANCE, apart, changed, parity, sharpened
from published import config_of, spec_of
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV3ForSequenceClassification,
    DeepseekV3ForTokenClassification,
    DeepseekV3Model,
)

import transom
from transom.errors import CheckpointError, SpecError
from transom.interop import import_checkpoint
from transom.registry.spec import load_spec

YARN = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 16,
    "beta_fast": 8, "beta_slow": 1, "mscale": 0.7, "mscale_all_dim": 1.2,
}  # fmt: skip
OPTIONS: dict[str, Any] = SIZES | {
    "hidden_size": 36, "intermediate_size": 50, "moe_intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 6, "n_shared_experts": 2, "n_routed_experts": 9, "n_group": 3,
    "topk_group": 2, "num_experts_per_tok": 3, "routed_scaling_factor": 1.7, "kv_lora_rank": 19, "q_lora_rank": 23,
    "qk_rope_head_dim": 10, "qk_nope_head_dim": 9, "v_head_dim": 7, "first_k_dense_replace": 1,
    "norm_topk_prob": True, "hidden_act": "gelu", "max_position_embeddings": 64, "rms_norm_eps": 0.1,
    "attention_bias": True, "tie_word_embeddings": True, "rope_parameters": YARN,
}  # fmt: skip


def made(kind: Any = DeepseekV3ForCausalLM, **options: Any) -> Any:
    return sharpened(kind(DeepseekV3Config(**OPTIONS | options)))


def test_deepseek_v3_computes_the_same_and_goes_back(tmp_path: Path) -> None:
    parity(made(), tmp_path)
    ids = torch.randint(83, (1, 23), generator=torch.Generator().manual_seed(4))
    experts, attention = "model.layer.feedforward", "model.layer.attention"
    for option in (
        f"{experts}.n_active=2", f"{experts}.renormalise=false", f"{experts}.activation=silu",
        f"{experts}.router.score=softmax", f"{experts}.router.n_active_groups=3", f"{experts}.router.scale=1.0",
        f"{attention}.stretch=null", f"{attention}.norm.eps=0.1", "model.position.layout=half",
        "model.position.scaling.mscale=1.0", "model.position.scaling.mscale_all_dim=null",
        "model.position.scaling=null", "model.layer.norm.eps=1.0e-6", "model.norm.eps=1.0e-6",
    ):  # fmt: skip
        assert changed(tmp_path, ids, option) > 1e-4, option


def test_what_can_be_left_out(tmp_path: Path) -> None:
    """Queries that are not compressed, halves that turn, all groups, weights as they are, no stretch, no biases."""
    theirs = made(
        q_lora_rank=None, rope_interleave=False, n_group=1, topk_group=1, norm_topk_prob=False, n_shared_experts=1,
        attention_bias=False, tie_word_embeddings=False, hidden_act="silu", first_k_dense_replace=0, v_head_dim=29,
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0, "mscale_all_dim": 0.8},
    )  # fmt: skip
    parity(theirs, tmp_path)
    ids = torch.randint(83, (1, 23), generator=torch.Generator().manual_seed(4))
    for option in (
        "model.position.layout=interleaved", "model.layer.feedforward.renormalise=true",
        "model.layer.attention.stretch=null",
    ):  # fmt: skip
        assert changed(tmp_path, ids, option) > 1e-4, option


def test_a_bias_chooses_experts_and_a_plain_rotation(tmp_path: Path) -> None:
    theirs = made(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    for layer in theirs.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias.mul_(10.0)  # scores are from 0 to 1
    parity(theirs, tmp_path)
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    ids = torch.randint(83, (3, 23), generator=torch.Generator().manual_seed(4))
    plain = import_checkpoint(tmp_path / "hf")[1](input_ids=ids).logits
    for name, tensor in weights.items():
        if name.endswith("e_score_correction_bias"):
            tensor.zero_()
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    assert apart(import_checkpoint(tmp_path / "hf")[1](input_ids=ids).logits, plain) > 1e-4


@pytest.mark.parametrize(
    "kind", [DeepseekV3Model, DeepseekV3ForSequenceClassification, DeepseekV3ForTokenClassification]
)
@torch.no_grad()
def test_other_heads(kind: Any, tmp_path: Path) -> None:
    theirs = made(kind, num_labels=5)
    theirs.save_pretrained(tmp_path)
    _, ours = import_checkpoint(tmp_path)
    ids = torch.randint(3, 83, (3, 23), generator=torch.Generator().manual_seed(4))
    found, wanted = ours(input_ids=ids), theirs(input_ids=ids)
    if kind is DeepseekV3Model:
        assert apart(found.hidden, wanted.last_hidden_state) < TOLERANCE
    else:
        assert apart(found.logits, wanted.logits) < TOLERANCE


@torch.no_grad()
def test_the_state_is_what_is_compressed(tmp_path: Path) -> None:
    """A step reads it in place, with the numbers of the expanded path, the reference's too."""
    made().save_pretrained(tmp_path)
    _, model = import_checkpoint(tmp_path)
    state = model.empty_state(2)
    assert {name: tuple(t.shape) for name, t in state.tensors.items() if name.startswith("layers.0")} == {
        "layers.0.attention.latent": (2, 0, 29)
    }
    ids = torch.randint(83, (2, 23), generator=torch.Generator().manual_seed(4))
    whole = model(input_ids=ids).logits
    for step in (1, 2, 9, 19):  # few are absorbed, many expanded
        out = model(input_ids=ids[:, :4], state=model.empty_state(2))
        logits = [out.logits]
        for piece in ids[:, 4:].split(step, dim=1):
            out = model(input_ids=piece, state=out.state)
            logits.append(out.logits)
        assert apart(torch.cat(logits, 1), whole) < TOLERANCE, step


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    made().save_pretrained(tmp_path / "hf")
    _, model = import_checkpoint(tmp_path / "hf")
    report = transom.export(model, tmp_path / "out")
    assert report.rows


def test_tensors_of_a_further_prediction_are_left_aside(tmp_path: Path) -> None:
    """As the peer does: of the layer after the last of the published model alone."""
    made().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"model.layers.61.eh_proj.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    import_checkpoint(tmp_path)
    save_file(weights | {"model.layers.3.eh_proj.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'model\.layers\.3\.eh_proj\.weight' is taken by no parameter"):
        import_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            r"DeepSeek-V3\.json: quantization_config: the weights are quantised \(fp8\); weights are read as they are",
        ),
        ({"scoring_func": "softmax"}, "scoring_func: 'softmax' is not supported; only 'sigmoid' is"),
        ({"topk_method": "greedy"}, "topk_method: 'greedy' is not supported; only 'noaux_tc' is"),
        ({"moe_layer_freq": 2}, "moe_layer_freq: 2 is not supported; only 1 is"),
        ({"n_group": 7}, r"n_group: 7 groups do not divide 256 experts evenly"),
        ({"topk_group": 9}, r"topk_group: 9 of 8 groups; at least 1, at most all"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace: should be a whole number, 0 or more, not -1"),
        ({"mlp_bias": True}, "mlp_bias: is not known to the family"),
    ],
)
def test_what_it_does_not_know_is_refused(fields: dict[str, Any], said: str) -> None:
    """The published file of DeepSeek-V3 is of weights in fp8; a folder that was converted to bf16 has no such field."""
    with pytest.raises(SpecError, match=said):
        spec_of(config_of("DeepSeek-V3-bf16") | fields, "DeepSeek-V3.json")


def test_the_published_file_is_what_the_family_begins_with() -> None:
    assert spec_of(config_of("DeepSeek-V3-bf16"), "DeepSeek-V3.json").model == load_spec("deepseek_v3", SAID).model


SAID = ["model.position.scaling.slow=1.0", "model.position.scaling.fast=32.0"]  # what the file says, as is without it


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("model.layer.attention.kind=local", "model.layer.attention.window=16"), None),
        (("model.layer.attention.kind=full",), None),
        (("model.layer.attention.kind=linear",), None),
        (("model.position=none", "model.layer.norm=layer"), None),
        (("model.position=alibi",), "latent can't take a bias on the scores, because a step reads what is kept as it"),
        (("model.layer.feedforward.kind=mlp",), None),
        (("model.topology=encoder", "objective=masked_lm"), None),
        (("model.layer.attention.rope_dim=3",), "3 of a head's 3 entries turn; an even number is needed"),
        (("model.layer.attention.v_dim=0",), "v_dim: 0 is not a width; at least 1"),
    ],
)
def test_its_parts_can_be_swapped_or_are_refused(changes: tuple[str, ...], said: str | None) -> None:
    if said is None:
        transom.compose(load_spec("deepseek_v3", changes), "meta")
        return
    with pytest.raises(SpecError) as caught:
        transom.compose(load_spec("deepseek_v3", changes), "meta")
    assert said in str(caught.value)


def test_what_the_peer_writes_is_read(tmp_path: Path) -> None:
    """Every field of its config class has a reading, stands for one value, or changes nothing."""
    DeepseekV3Config(architectures=["DeepseekV3ForCausalLM"]).save_pretrained(tmp_path)
    spec_of(json.loads((tmp_path / "config.json").read_text()), "config.json")
