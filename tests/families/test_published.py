"""The config.json of a published checkpoint comes to the model that its family begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from published import config_of, spec_of

from transom.registry.spec import load_spec

BEGINS: Mapping[str, str] = {
    "gpt2": "gpt2", "llama": "Llama-3.2-1B", "mistral": "Mistral-7B-v0.1", "qwen2": "Qwen2.5-0.5B",
    "qwen3": "Qwen3-0.6B", "gpt_neox": "pythia-160m", "gemma3": "gemma-3-1b-pt", "gemma2": "gemma-2-2b",
    "phi3": "Phi-3-mini-4k-instruct", "mixtral": "Mixtral-8x7B-v0.1", "xlm_roberta": "xlm-roberta-base",
}  # fmt: skip
# What a file says and would hold without it.
SPELT_OUT: Mapping[str, Sequence[str]] = {
    "llama": [
        f"model.{option}"
        for option in ("layer.attention.head_dim=64", "position.scaling.slow=1.0", "position.scaling.fast=4.0")
    ],
}


@pytest.mark.parametrize("name", BEGINS)
def test_a_published_config_is_what_the_family_begins_with(name: str) -> None:
    found = spec_of(config_of(BEGINS[name]), "config.json")
    assert found.model == load_spec(name, SPELT_OUT.get(name, ())).model
