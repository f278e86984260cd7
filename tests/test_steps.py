"""What a training step is made of: what it is estimated to hold, and passes that are captured and replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from test_training import decoder, losses, text, weights

from transom.core.objective import Prepared
from transom.errors import SpecError, TrainingError
from transom.training import graph, setup, train
from transom.training.processes import World
from transom.training.trainer import Trainer

__all__ = ["text"]  # a fixture


def test_what_a_step_holds_is_estimated_once(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Mock(wraps=setup.estimate)
    monkeypatch.setattr(setup, "estimate", counted)
    spec = decoder(text, memory_gb=5.6e-4, steps=1)
    found = setup.estimate(spec, setup.outline(spec)).training
    assert found is not None
    assert found.checkpointed == {"decoder": 1}
    counted.reset_mock()
    seen = list[int]()
    monkeypatch.setattr(Trainer, "run", lambda self: seen.append(self.model.decoder.checkpointed))
    train(spec, tmp_path / "run")
    assert seen == [1]
    assert counted.call_count == 1


class Replayed:
    """Stand for a CUDA graph: what was captured runs anew, into the tensor that it gave."""

    def __init__(self, run: Callable[[], torch.Tensor]) -> None:
        self.run, self.loss, self.count = run, run(), 0

    def replay(self) -> None:
        self.count += 1
        self.loss.copy_(self.run())


def test_a_step_that_is_replayed_learns_the_same(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses and weights, with gradients of several batches and dropout; no kernel is captured here."""
    graphs: list[Replayed] = []

    def captured(warm: Callable[[], Any], run: Callable[[], torch.Tensor], device: torch.device, beside: Any) -> Any:
        warm()
        graphs.append(Replayed(run))
        return graphs[-1].loss, graphs[-1]

    monkeypatch.setattr(graph, "captured", captured)
    monkeypatch.setattr(setup, "check_graph", lambda spec, world: None)
    given = {"steps": 4, "accumulate": 2}
    train(decoder(text, "model.layer.dropout=0.2", **given), tmp_path / "plain")
    train(decoder(text, "model.layer.dropout=0.2", cuda_graph=True, **given), tmp_path / "replayed")
    # Of batches with padding and without: a graph each.
    assert len(graphs) == 2
    assert sum(each.count for each in graphs) == 8
    assert losses(tmp_path / "replayed") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    other = weights(tmp_path / "replayed")
    for name, tensor in weights(tmp_path / "plain").items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-6)


def test_graphs_add_to_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.ones(()))

    def run(part: Prepared, scale: torch.Tensor) -> torch.Tensor:
        loss = (part.targets.float() * weight).sum() * scale
        loss.backward()
        return loss.detach()

    def captured(warm: Callable[[], Any], run: Callable[[], torch.Tensor], device: torch.device, beside: Any) -> Any:
        made = Replayed(run)
        return made.loss, made

    monkeypatch.setattr(graph, "captured", captured)
    held = graph.CapturedPass(run, [weight], torch.device("cpu"))
    assert held(Prepared({}, torch.ones(3), None), torch.tensor(2.0), 0).item() == 6
    assert held(Prepared({}, torch.full((3,), 2.0), None), torch.tensor(2.0), 0).item() == 12
    assert weight.grad is not None
    assert weight.grad.item() == 18
    kept = weight.grad
    held.clear()
    assert weight.grad is kept
    assert weight.grad.item() == 0
    held(Prepared({}, torch.ones(3), None), torch.tensor(1.0), 0)
    for width in range(4, 11):
        assert held(Prepared({}, torch.ones(width), None), torch.tensor(1.0), 0).item() == width
    assert weight.grad is kept
    assert weight.grad.item() == sum(range(3, 11))
    with pytest.raises(TrainingError, match=r"train\.cuda_graph: batches have more than 8 shapes"):
        held(Prepared({}, torch.ones(11), None), torch.tensor(1.0), 0)


def test_what_no_graph_captures_is_refused(text: Path) -> None:
    cpu, cuda = (World(torch.device(name)) for name in ("cpu", "cuda"))
    with pytest.raises(SpecError, match=r"train\.cuda_graph: a CUDA graph needs a CUDA device, and .* on cpu"):
        setup.check_settings(decoder(text, cuda_graph=True), cpu)
    assert graph.check_graph(decoder(text), cuda) is None
    assert "compute twice" in str(graph.check_graph(decoder(text, checkpoint_activations=True), cuda))
    assert "3 processes" in str(graph.check_graph(decoder(text), World(torch.device("cuda"), 0, 3)))
    pairs = decoder(text, "objective=seq2seq_lm", "data={kind: pairs, path: x, seq_len: 9}")
    assert "a graph has one width" in str(graph.check_graph(pairs, cuda))
