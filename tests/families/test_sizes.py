"""Published checkpoints compose with as many parameters as the peer gives them, to the last digit."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from published import NAMES, config_of, spec_of
from torch import nn

import transom

SIZES: dict[str, int] = {}
"""By checkpoint: the parameters of both."""


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_published_checkpoint_has_the_peer_s_number_of_parameters(name: str) -> None:
    config = config_of(name)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peer, on fields that say how text is written
        if "architectures" in config:
            cls = getattr(transformers, config["architectures"][0])
            theirs = cls(cls.config_class.from_dict(config))
        else:  # as some published files leave it
            known = transformers.AutoConfig.for_model(config["model_type"])
            theirs = transformers.AutoModel.from_config(type(known).from_dict(config))
    ours = transom.compose(spec_of(config, f"{name}.json"), device="meta")
    assert size(ours) == size(theirs)
    SIZES[name] = size(ours)
