"""BLOOM from its config.json, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peers import changed, parity, sharpened
from transformers import BloomConfig, BloomForCausalLM
from two_sided import drawn

import transom
from transom.errors import SpecError


def small(**more: Any) -> Any:
    return sharpened(
        BloomForCausalLM(
            BloomConfig(vocab_size=83, hidden_size=36, n_layer=2, n_head=6, layer_norm_epsilon=0.1, **more)
        )
    )


@pytest.mark.parametrize("after", [False, True])
def test_bloom(tmp_path: Path, after: bool) -> None:
    more: dict[str, Any] = {"apply_residual_connection_post_layernorm": after, "tie_word_embeddings": not after}
    parity(small(**more), tmp_path, attention="eager")
    ids = drawn(83, 23, 1)
    for option in (
        f"model.layer.residual={'before' if after else 'after'}", "model.position=none", "model.position.scale=0.5",
        "model.embedding.norm.eps=1.0e-5", "model.layer.norm.eps=1.0e-5", "model.norm.eps=1.0e-5",
        "model.layer.feedforward.activation=gelu",
    ):  # fmt: skip
        assert changed(tmp_path, ids, option) > 1e-4, option


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    small(apply_residual_connection_post_layernorm=True).save_pretrained(tmp_path / "hf")
    _, model = transom.import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows


def test_a_residual_after_the_norm_needs_one(tmp_path: Path) -> None:
    """It is an option of any spec; where no one norm stands before a sublayer, it is refused with the reason."""
    for placement in ("pre", "sandwich", "parallel"):
        transom.compose(
            transom.load_spec("tiny_gpt", ["model.layer.residual=after", f"model.layer.placement={placement}"])
        )
    with pytest.raises(SpecError, match=r"residual: there is none after the norm where placement is post: no norm"):
        transom.load_spec("tiny_gpt", ["model.layer.residual=after", "model.layer.placement=post"])


def test_what_changes_the_computation_is_refused(tmp_path: Path) -> None:
    theirs = small()
    theirs.config.slow_but_exact = True
    theirs.save_pretrained(tmp_path / "hf")
    with pytest.raises(SpecError, match=r"config.json: slow_but_exact: true is not supported; only false is"):
        transom.import_checkpoint(tmp_path / "hf")
