"""RecurrentGemma from its config.json, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import _gradients, _steps, apart, changed, checked
from torch import Tensor
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from two_sided import broken_by, drawn, masks, sharpened, spreads, there_and_back

import transom
from transom.interop import family_spec


def small(**more: Any) -> Any:
    """Return a model of 5 layers, two recurrent to one with a window."""
    options: dict[str, Any] = {
        "vocab_size": 83, "hidden_size": 60, "intermediate_size": 51, "num_hidden_layers": 5, "num_attention_heads": 6,
        "num_key_value_heads": 2, "lru_width": 42, "conv1d_width": 3, "attention_window_size": 7, "rms_norm_eps": 0.1,
        "logits_soft_cap": 5.0, "attention_bias": True, "hidden_activation": "silu", "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.6},
        "block_types": ["recurrent", "attention"], "use_cache": False,
    }  # fmt: skip
    return sharpened(RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**options | more)))


DEFAULTS = {
    "rope_parameters": None, "attention_bias": False, "hidden_activation": "gelu_pytorch_tanh", "lru_width": None,
    "tie_word_embeddings": True, "conv1d_width": 4, "block_types": ["recurrent", "recurrent", "attention"],
    "num_key_value_heads": None, "num_attention_heads": 5, "logits_soft_cap": 30.0,
}  # fmt: skip


@torch.no_grad()
def errors_of(theirs: Any, ours: Any, ids: Tensor) -> list[float]:
    """Return how far whole passes are apart; the peer's recurrence reads padding, and so never sees any."""
    found = []
    for mask in (torch.ones_like(ids), *masks(ids.shape[1])):
        mine = ours(input_ids=ids, attention_mask=mask)
        for row in range(len(ids)):
            real = mask[row].bool()
            wanted = theirs(input_ids=ids[row : row + 1, real], output_hidden_states=True, use_cache=False)
            found.append(apart(mine.logits[row, real], wanted.logits[0]))
            found.append(apart(mine.hidden[row, real], wanted.hidden_states[-1][0]))
    return found


@pytest.mark.parametrize("more", [{}, DEFAULTS])
def test_recurrent_gemma(tmp_path: Path, more: dict[str, Any]) -> None:
    theirs = small(**more)
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 37, 2)
    assert spreads(theirs, input_ids=ids) > 2
    checked(theirs, [*errors_of(theirs, ours, ids), _steps(ours, ids)])
    assert _gradients(theirs, ours, ids) < 1e-4
    shared = ("model.embedding.scale=1.0", "model.embedding.scale=sqrt_d_model", "model.position.fraction=1.0",
              "model.norm.eps=1e-5", "model.layer.norm.unit_offset=false",
              "model.layers.0.pattern.0.attention.activation=relu",
              "model.layer.feedforward.activation=gelu")  # fmt: skip
    found = broken_by(
        tmp_path, {"input_ids": 83}, *shared, "model.layer.attention.window=8", "model.position.theta=500.0"
    )
    assert min(found.values()) > 1e-4, found
    assert changed(tmp_path, ids, "model.head.soft_cap=null") > 1e-4


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    small(num_hidden_layers=2).save_pretrained(tmp_path / "hf")
    _, model = transom.import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows


@torch.no_grad()
def test_the_peer_s_own_steps(tmp_path: Path) -> None:
    theirs = small(lru_width=60)
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 37, 2)
    out = theirs.generate(ids[:, :21], max_new_tokens=16, do_sample=False, use_cache=True, output_logits=True,
                          return_dict_in_generate=True)  # fmt: skip
    whole = ours(input_ids=out.sequences[:, :-1]).logits[:, 20:]
    checked(theirs, [apart(whole, torch.stack(out.logits, dim=1))])


def test_a_model_without_a_head(tmp_path: Path) -> None:
    theirs = small().model
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 37, 2)
    with torch.no_grad():
        checked(theirs, [apart(ours(input_ids=ids).hidden, theirs(input_ids=ids).last_hidden_state)])


def refusal(theirs: Any, folder: Path, **wrong: Any) -> str:
    """Return what is said of a folder some of whose fields were changed."""
    theirs.save_pretrained(folder / "hf")
    config = json.loads((folder / "hf" / "config.json").read_text(encoding="utf-8"))
    (folder / "hf" / "config.json").write_text(json.dumps(config | wrong), encoding="utf-8")
    with pytest.raises(transom.TransomError) as caught:
        transom.import_checkpoint(folder / "hf")
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("block_types", ["recurrent", "delta"], "block_types.1: 'delta' is not known to the family"),
        (
            "rope_parameters",
            {"rope_type": "yarn"},
            "rope_parameters.rope_type: 'yarn' is not supported; only 'default'",
        ),
        ("hidden_activation", "softsign", "hidden_activation: 'softsign' is not known to the family"),
        ("lru_width", 41, "6 blocks do not divide 41 channels evenly"),
        ("conv1d_width", 0, "0 covers no token"),
    ],
)
def test_what_it_can_t_be_is_refused_at_its_place(tmp_path: Path, field: str, value: Any, said: str) -> None:
    assert said in refusal(small(num_hidden_layers=2), tmp_path, **{field: value})


def test_layers_begin_again_and_are_cut(tmp_path: Path) -> None:
    found = {}
    for types in (["recurrent"], ["recurrent", "attention", "attention"], ["attention"] * 7):
        small(block_types=types).save_pretrained(tmp_path / "hf")
        layers = family_spec(tmp_path / "hf").model.stacks["decoder"].layers
        found[len(types)] = "".join(layer.attention.name[0] for layer in layers if layer.attention)
    assert found == {1: "rrrrr", 3: "rllrl", 7: "lllll"}
