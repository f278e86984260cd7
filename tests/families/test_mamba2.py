"""Mamba-2 from its config.json, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import apart, changed, sharpened
from recurrences import carried_parity, drawn
from transformers import Mamba2Config, Mamba2ForCausalLM, Mamba2Model
from two_sided import there_and_back

import transom
from transom.errors import SpecError
from transom.interop import family_spec

MIXER = "model.layer.attention"


def made(**more: Any) -> Any:
    options = {
        "vocab_size": 83, "hidden_size": 21, "num_hidden_layers": 2, "num_heads": 3, "head_dim": 14, "state_size": 11,
        "n_groups": 3, "conv_kernel": 3, "chunk_size": 5, "layer_norm_epsilon": 0.1, "pad_token_id": 0,
    }  # fmt: skip
    return sharpened(Mamba2ForCausalLM(Mamba2Config(**options | more)))


OTHERS = {"use_bias": True, "use_conv_bias": False, "time_step_limit": (0.05, 0.1), "tie_word_embeddings": True,
          "residual_in_fp32": False, "hidden_act": "gelu", "n_groups": 1, "expand": 3, "head_dim": 21}  # fmt: skip


@pytest.mark.parametrize(("more", "needed"), [
    ({}, [f"{MIXER}.norm_before_gate=true", f"{MIXER}.eps=1.0e-5", f"{MIXER}.activation=relu",
          "model.layer.norm.eps=1.0e-5", "model.norm.eps=1.0e-5"]),
    (OTHERS, [f"{MIXER}.step_limit=[null, 0.1]", f"{MIXER}.step_limit=[0.05, null]", f"{MIXER}.activation=silu"]),
])  # fmt: skip
def test_it_computes_the_same_and_goes_back(tmp_path: Path, more: dict[str, Any], needed: list[str]) -> None:
    carried_parity(made(**more), tmp_path)
    for option in needed:
        assert changed(tmp_path, drawn(83), option) > 1e-4, option


@torch.no_grad()
def test_the_body_alone(tmp_path: Path) -> None:
    theirs = Mamba2Model(made().config)
    ours = there_and_back(sharpened(theirs), tmp_path)
    ids = drawn(83)
    assert apart(ours(input_ids=ids).hidden, theirs(input_ids=ids).last_hidden_state) < 1e-5


@torch.no_grad()
def test_sums_in_fp32_where_the_rest_is_not(tmp_path: Path) -> None:
    """As the peer's own bfloat16; what layers add to large vectors is lost in sums of bfloat16."""
    theirs, ids = made(num_hidden_layers=8), drawn(83)
    theirs.backbone.embeddings.weight.mul_(100.0)
    exact = theirs(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    ours = there_and_back(theirs, tmp_path).to(torch.bfloat16)
    _, narrow = transom.import_checkpoint(
        tmp_path / "hf", family_spec(tmp_path / "hf", ["model.layer.residual_dtype=model"])
    )
    found, other = (model(input_ids=ids).hidden for model in (ours, narrow.to(torch.bfloat16)))
    wanted = theirs.to(torch.bfloat16)(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert found.dtype == torch.bfloat16
    off, off_there, off_narrow = ((each.float() - exact).square().mean() for each in (found, wanted, other))
    assert off < 3.0 * off_there  # the peer gives fp32, of which it makes logits in bfloat16
    assert off < 0.5 * off_narrow


def test_its_file_is_read_whole(tmp_path: Path) -> None:
    made().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def read(**fields: Any) -> Any:
        (tmp_path / "config.json").write_text(json.dumps(config | fields))
        return family_spec(tmp_path)

    plain = read()
    older = {"time_step_limit": [0.0, float("inf")], "norm_before_gate": True, "rms_norm": True, "time_step_scale": 1.0,
             "time_step_init_scheme": "random", "intermediate_size": 42}  # fmt: skip
    assert read(**older) == plain
    for fields, said in (
        ({"expand": 3}, "head_dim: 3 heads of 14 are not 3 times d_model 21"),
        ({"n_groups": 2}, "n_groups: 2 groups do not divide 3 heads evenly"),
        ({"rms_norm": False}, "rms_norm: false is not supported; only true is"),
        ({"time_step_limit": [0.3, 0.1]}, "time_step_limit: from 0.3 to 0.1 is no range of steps"),
        ({"bias": True}, "bias: is not known to the family"),
    ):
        with pytest.raises(SpecError, match=said):
            transom.import_checkpoint(tmp_path, read(**fields))


def test_its_parts_are_swapped(tmp_path: Path) -> None:
    def swapped(*overrides: str) -> Any:
        return transom.compose(transom.load_spec("mamba2", ["model.layers.0.repeat=1", *overrides]), "meta")

    swapped(f"{MIXER}.kind=local", f"{MIXER}.window=16", "model.position=rope")
    swapped(f"{MIXER}.kind=gated_delta", "model.norm=layer", "model.layer.feedforward={kind: glu}")
    swapped("model.position=rope")
    with pytest.raises(SpecError, match="state_space can't take a bias on the scores, because it sums outer products"):
        swapped("model.position=alibi")
    with pytest.raises(SpecError, match="state_space can't run where tokens see both sides, because its state runs"):
        swapped("model.topology=encoder")


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    made(**OTHERS).save_pretrained(tmp_path / "hf")
    _, model = transom.import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows
