"""Composing adds no work: a composed model asks torch for no more operations than the same model by hand."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from transom.registry.compose import compose
from transom.registry.spec import load_spec

SMALL = ["model.d_model=24", "model.embedding.vocab_size=67", "model.layer.feedforward.d_ff=40", "model.max_seq_len=31"]


class Counter(TorchDispatchMode):
    """Count the operations that reach torch's kernels."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(step: Callable[[], object]) -> int:
    step()  # what is made once and kept is there
    with Counter() as counter:
        step()
    return counter.count


@pytest.fixture
def pair(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return a composed model and the hand-written one with its weights."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    handwritten = importlib.import_module("handwritten")
    model = compose(load_spec("tiny_gpt", SMALL))
    hand = handwritten.Decoder(67, 24, 4, 4, 2, 40, 31)
    handwritten.copy_weights(hand, model)
    return model, hand


def test_a_decoding_step_takes_no_more_operations(pair: tuple[Any, Any]) -> None:
    model, hand = pair
    ids = torch.randint(67, (3, 11))
    with torch.inference_mode():
        state = model(input_ids=ids[:, :10], state=model.empty_state(3)).state
        past = hand.step(ids[:, :10], None)[1]
        ours = model(input_ids=ids[:, 10:], state=state).logits
        torch.testing.assert_close(ours, hand.step(ids[:, 10:], past)[0], rtol=1e-5, atol=1e-5)
        by_hand = operations(lambda: hand.step(ids[:, 10:], past))
        assert operations(lambda: model(input_ids=ids[:, 10:], state=state)) <= by_hand


def test_a_forward_and_a_backward_pass_take_no_more_operations(pair: tuple[Any, Any]) -> None:
    model, hand = pair
    ids = torch.randint(67, (3, 11))
    by_hand = operations(lambda: hand.step(ids, None)[0].sum().backward())
    assert operations(lambda: model(input_ids=ids).logits.sum().backward()) <= by_hand
