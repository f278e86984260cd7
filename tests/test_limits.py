"""Limits hold before anything is allocated: parameters, tokens of a batch, and the memory that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from transom.errors import SpecError
from transom.registry import limits
from transom.registry.compose import compose
from transom.registry.show import describe
from transom.registry.spec import load_spec
from transom.training import train


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["model.embedding.vocab_size=1000000000000"], "has 128,000,000,726,144 parameters"),
        (["model.layers=[{repeat: 10000}]", "model.d_model=65536"], "parameters; a spec may make 10,000,000,000,000"),
        (["model.position=learned", "model.max_seq_len=100000000000000000"], "larger than any tensor"),
        (["train.batch_size=10000000000"], "has 1,280,000,000,000 tokens"),
        (["model.max_seq_len=1000000000000", "data.seq_len=1000000000000"], "has 16,000,000,000,000 tokens"),
    ],
)
def test_what_no_machine_holds_is_not_even_shown(overrides: list[str], why: str) -> None:
    with pytest.raises(SpecError, match=why) as refused:
        describe(load_spec("tiny_gpt", overrides))
    assert "override" in str(refused.value)


def test_the_edge_itself_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec("tiny_gpt")
    size = sum(p.numel() for p in compose(spec, "meta").parameters())
    monkeypatch.setattr(limits, "MOST_PARAMETERS", size)
    monkeypatch.setattr(limits, "MOST_TOKENS", 16 * 128)
    assert describe(spec).estimate.parameters == size
    monkeypatch.setattr(limits, "MOST_PARAMETERS", size - 1)
    with pytest.raises(SpecError, match=f"has {size:,} parameters"):
        describe(spec)
    monkeypatch.setattr(limits, "MOST_PARAMETERS", size)
    monkeypatch.setattr(limits, "MOST_TOKENS", 16 * 128 - 1)
    with pytest.raises(SpecError, match="a batch of 16 rows has 2,048 tokens"):
        describe(spec)


def test_a_model_is_composed_only_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec("tiny_gpt")
    size = sum(t.numel() * t.element_size() for t in compose(spec).parameters())
    monkeypatch.setattr(limits, "memory_of", lambda device: size)
    compose(spec)
    monkeypatch.setattr(limits, "memory_of", lambda device: size - 1)
    with pytest.raises(SpecError, match=r"and this machine has 3\.95 MB"):
        compose(spec)
    compose(spec, "meta")


@pytest.mark.parametrize("overrides", [[], ["train.batch_size=1024"]])
def test_a_training_that_does_not_fit_leaves_nothing(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec("tiny_gpt", overrides)
    estimated = describe(spec).estimate.training
    assert estimated is not None
    monkeypatch.setattr(limits, "memory_of", lambda device: estimated.peak - 1)
    with pytest.raises(SpecError, match=r"train\.batch_size: a training step needs"):
        train(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_memory_of_this_machine_is_known() -> None:
    assert 2**28 < (limits.memory_of(torch.device("cpu")) or 0) < 2**50


def test_what_layers_read_is_told_at_once_unless_some_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec("tiny_gpt")
    kept = 2 * 16 * 128 * 128 * 4
    monkeypatch.setattr(limits, "memory_of", lambda device: kept - 1)
    with pytest.raises(SpecError, match="what the layers of such a batch read"):
        limits.check_activations(spec, "cpu")
    limits.check_activations(load_spec("tiny_gpt", ['train.freeze=["decoder.layers.*"]']), "cpu")
    monkeypatch.setattr(limits, "memory_of", lambda device: kept)
    limits.check_activations(spec, "cpu")
