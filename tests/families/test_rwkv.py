"""RWKV-4 from its config.json, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peers import _gradients, _steps, apart, checked
from torch import Tensor
from transformers import RwkvConfig, RwkvForCausalLM
from two_sided import broken_by, drawn, masks, sharpened, there_and_back

import transom
from transom.registry.spec import load_spec


def small(**more: Any) -> Any:
    """Return a model of 5 layers, halved after the second and the fourth."""
    options: dict[str, Any] = {
        "vocab_size": 83, "context_length": 41, "hidden_size": 37, "attention_hidden_size": 37, "intermediate_size": 50,
        "num_hidden_layers": 5, "layer_norm_epsilon": 0.1, "rescale_every": 2,
    }  # fmt: skip
    return sharpened(RwkvForCausalLM(RwkvConfig(**options | more)))


@torch.no_grad()
def errors_of(theirs: Any, ours: Any, ids: Tensor) -> list[float]:
    """Return how far whole passes are apart; the peer reads padding as text, and so never sees any."""
    found = []
    for mask in (torch.ones_like(ids), *masks(ids.shape[1])):
        mine = ours(input_ids=ids, attention_mask=mask)
        for row in range(len(ids)):
            real = mask[row].bool()
            wanted = theirs(input_ids=ids[row : row + 1, real], output_hidden_states=True, use_cache=False)
            found.append(apart(mine.logits[row, real], wanted.logits[0]))
            found.append(apart(mine.hidden[row, real], wanted.hidden_states[-1][0]))
    return found


@pytest.mark.parametrize("more", [{}, {"attention_hidden_size": 29, "tie_word_embeddings": True, "rescale_every": 3}])
def test_rwkv(tmp_path: Path, more: dict[str, Any]) -> None:
    theirs = small(**more)
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 37, 2)
    checked(theirs, [*errors_of(theirs, ours, ids), _steps(ours, ids)])
    theirs.config.use_cache = False
    assert _gradients(theirs, ours, ids) < 1e-4
    found = broken_by(tmp_path, {"input_ids": 83}, "model.halve_every=0", "model.halve_every=4", "model.norm.eps=0.1",
                      "model.layer.norm.eps=1e-5", "model.embedding.norm.eps=1e-5")  # fmt: skip
    assert min(found.values()) > 1e-4, found


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    small(num_hidden_layers=2, rescale_every=1).save_pretrained(tmp_path / "hf")
    _, model = transom.import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows


@torch.no_grad()
def test_the_peer_s_own_steps(tmp_path: Path) -> None:
    """One row: of several, the peer takes the newest token of each for all."""
    theirs = small()
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 37, 2)[:1]
    past, state, wanted, found = None, ours.empty_state(1), [], []
    for piece in ids.split([21, *[1] * 16], dim=1):
        there = theirs(input_ids=piece, state=past, use_cache=True)
        here = ours(input_ids=piece, state=state)
        past, state = there.state, here.state
        wanted.append(there.logits)
        found.append(here.logits)
    checked(theirs, [apart(torch.cat(found, 1), torch.cat(wanted, 1))])


def test_a_model_without_a_head(tmp_path: Path) -> None:
    theirs = small().rwkv
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 37, 2)
    with torch.no_grad():
        checked(theirs, [apart(ours(input_ids=ids).hidden, theirs(input_ids=ids).last_hidden_state)])


def test_a_stream_of_fixed_size_is_not_halved() -> None:
    for option in ("placement=post", "residual=after", "position=sinusoidal"):
        with pytest.raises(transom.TransomError, match=r"halve_every: the vectors are of a fixed size"):
            load_spec("rwkv", [f"model.layer.{option}"])
    assert load_spec("rwkv", ["model.layer.placement=post", "model.halve_every=0"])


def test_other_parts_compose_or_are_refused_with_the_reason() -> None:
    for option in (
        "attention={kind: local, n_heads: 4, window: 16}",
        "norm=rms",
        "feedforward=glu",
        "placement=parallel",
    ):
        transom.compose(load_spec("rwkv", ["model.layers=[{repeat: 2}]", f"model.layer.{option}"]), device="meta")
    for option, why in {
        "position=alibi": "no pair of tokens ever has a score",
        "topology=encoder": "would rise",
    }.items():
        with pytest.raises(transom.TransomError, match=why):
            transom.compose(load_spec("rwkv", [f"model.{option}", "objective=none"]), device="meta")
