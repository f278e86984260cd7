"""Parts of the dense decoders swapped: what makes sense composes, what does not is refused with the reason."""

from __future__ import annotations

import pytest

import transom
from transom.errors import SpecError

FAMILIES = ("openai_gpt", "gpt_neo", "bloom", "falcon", "phi3")
SWAPS = {
    "a window": ["model.layer.attention.kind=local", "model.layer.attention.window=16"],
    "few key heads": ["model.layer.attention.n_kv_heads=1"],
    "another norm": ["model.layer.norm=rms", "model.layer.attention.qk_norm=rms"],
    "no norm at the end": ["model.norm=none"],
    "turned positions": ["model.position={kind: rope, theta: 5000.0}"],
    "penalties": ["model.position={kind: alibi, rounded: bf16}"],
    "added positions": ["model.position=sinusoidal"],
    "no positions": ["model.position=none"],
    "a gated feedforward": ["model.layer.feedforward=glu"],
    "norms around": ["model.layer.placement=sandwich", "model.layer.residual=after"],
    "side by side": ["model.layer.placement=parallel"],
    "an untied head": ["model.head={tied: false, soft_cap: 30.0}"],
    "classes": ["model.head={kind: classifier, n_classes: 3, pool: last}", "objective=classification"],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("swap", SWAPS)
def test_a_part_is_swapped(family: str, swap: str) -> None:
    transom.compose(transom.load_spec(family, SWAPS[swap]), device="meta")


def test_what_makes_no_sense_is_refused() -> None:
    recurrence = "model.layer.attention={kind: lstm, d_hidden: 64}"
    transom.compose(transom.load_spec("falcon", [recurrence]), device="meta")
    with pytest.raises(SpecError, match=r"attention 'lstm' does not compose with position 'alibi': (.*) because"):
        transom.compose(transom.load_spec("bloom", [recurrence]), device="meta")
    with pytest.raises(SpecError, match=r"layers\.0\.pattern\.0\.attention\.n_heads: is missing"):
        transom.load_spec("gpt_neo", [recurrence])  # every other layer of its pattern names a kind of its own
    with pytest.raises(SpecError, match="residual: there is none after the norm where placement is parallel_norms"):
        transom.load_spec("falcon", ["model.layer.placement=parallel_norms", "model.layer.residual=after"])
