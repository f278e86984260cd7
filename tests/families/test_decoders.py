"""Decoders from their config.json, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decoders import FAMILIES
from peers import changed, parity, sharpened

import transom


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_the_same_and_goes_back(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    parity(sharpened(family.make()), tmp_path, attention=family.attention)
    ids = torch.randint(83, (1, 23))
    for option in family.needed:
        assert changed(tmp_path, ids, option) > 1e-4, option


SLICE = ("gemma2", "mixtral")  # the parts that kernels don't know: capped scores, experts


@pytest.mark.parametrize(
    "name", [*SLICE, *(pytest.param(n, marks=pytest.mark.long) for n in FAMILIES if n not in SLICE)]
)
def test_a_graph_of_it_agrees(name: str, tmp_path: Path) -> None:
    sharpened(FAMILIES[name].make()).save_pretrained(tmp_path / "hf")
    _, model = transom.import_checkpoint(tmp_path / "hf")
    assert transom.export(model, tmp_path / "out").rows
