"""Published checkpoints compose with as many parameters as the peer gives them, to the last digit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from published import NAMES, architecture_of, config_of, spec_of
from torch import nn

import transom


def size(model: nn.Module) -> int:
    """Return how many numbers a checkpoint of a model holds that were learned: tables of sinusoids were not."""
    fixed = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    held = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    return sum(count for key, count in held.items() if key not in fixed)


def peer(config: Mapping[str, Any]) -> nn.Module:
    """Return the peer's model on the meta device."""
    cls = getattr(transformers, architecture_of(config))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peer, on fields that say how text is written
        model: Any = cls(cls.config_class.from_dict(dict(config)))
    if config.get("tie_word_embeddings") is False and hasattr(model, "lm_head"):
        # T5's peer ties until it has read a checkpoint: one that says it does not brings a table of its own.
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_published_checkpoint_has_the_peer_s_number_of_parameters(name: str) -> None:
    config = config_of(name)
    ours = transom.compose(spec_of(config, f"{name}.json"), device="meta")
    assert size(ours) == size(peer(config))
