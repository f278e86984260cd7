"""Steps whose layers are compiled: the same tokens, compiled once; and what can be shown of them without CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from test_draft import GROWS, PROMPTS, RING, SUM, VOCAB, model
from torch._dynamo.testing import CompileCounterWithBackend

from transom.errors import InputError
from transom.generation import Sampling, generate
from transom.registry.compose import compose
from transom.registry.spec import parse_spec
from transom.training import compiled
from transom.training.regions import GRAPHS_A_LAYER, compile_regions
from transom.training.text import Stepper

# Tracing an autograd function instantiates one, inside torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Count what is compiled; the backend that generates code, which takes a minute, is left out."""
    torch._dynamo.reset()
    counted = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    yield counted
    torch._dynamo.reset()


@pytest.mark.parametrize("layers", [GROWS, RING, SUM], ids=["grows", "ring", "sum"])
@pytest.mark.parametrize("prompts", [PROMPTS, [[7, 8, 9]]], ids=["several", "one"])
def test_texts_are_the_same_and_steps_are_compiled_once(
    layers: str, prompts: list[list[int]], graphs: CompileCounterWithBackend
) -> None:
    of, sampling = model(layers, length=61), Sampling(max_new_tokens=50, temperature=0.8)
    wanted = generate(Stepper(of, VOCAB), prompts, sampling)
    assert graphs.frame_count == 0
    few = generate(Stepper(of, VOCAB, compiled=True), prompts, Sampling(max_new_tokens=5, temperature=0.8))
    assert [row.ids for row in few] == [row.ids[:5] for row in wanted]
    # A graph for each kind of layer, and one where the first makes what the others share.
    assert 0 < (once := graphs.frame_count) <= 3
    assert generate(Stepper(of, VOCAB, compiled=True), prompts, sampling) == wanted
    assert graphs.frame_count == once


def test_more_room_is_compiled_for_once_more(
    graphs: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stepper, "spare", 2)
    of, sampling = model(length=61), Sampling(max_new_tokens=57)
    wanted = generate(Stepper(of, VOCAB), [[5, 9]], sampling)
    assert generate(Stepper(of, VOCAB, compiled=True), [[5, 9]], sampling) == wanted
    # Each room has a graph for the first layer and one for the others.
    assert 2 < graphs.frame_count <= 2 * 6


@torch.inference_mode()
def test_a_compiled_step_writes_to_its_slots(graphs: CompileCounterWithBackend) -> None:
    of = model(RING)
    stepper, state = Stepper(of, VOCAB, compiled=True), of.empty_state(2, room=24)
    ids = torch.tensor([[4], [8]]).numpy()
    _, state = Stepper(of, VOCAB).step(ids, None, state)
    kept = {name: tensor for name, tensor in state.tensors.items() if 24 in tensor.shape}
    for step in range(5):
        _, state = stepper.step(ids, None, state)
        assert (state.columns, state.seen.tolist()) == (2 + step, [2 + step] * 2)
        assert kept
        assert all(state.tensors[name] is tensor for name, tensor in kept.items())
    assert all(tensor.select(2, 5).any() and not tensor.select(2, 6).any() for tensor in kept.values())


class Graph:
    """Stand for a CUDA graph: what is captured runs when it is replayed."""

    made: int = 0

    def __init__(self) -> None:
        Graph.made += 1
        self.replay = Mock()


def test_on_cuda_a_step_is_captured_once_for_the_tensors_of_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel runs here: which calls are made, and when anew."""
    of = model(RING)
    monkeypatch.setattr(compiled, "compile_regions", lambda model, steps: "no layers compiled")
    step = compiled.CompiledStep(of, "")
    assert step.path == "no layers compiled, on cpu"
    step.device = torch.device("cuda")
    assert step.path == "no layers compiled, all kernels of a step captured in one CUDA graph"
    stream = SimpleNamespace(wait_stream=Mock())
    fake: dict[str, Any] = {
        "Stream": lambda device: stream, "current_stream": lambda device: stream, "CUDAGraph": Graph,
        "stream": lambda aside: nullcontext(), "graph": lambda graph, pool: nullcontext(),
    }  # fmt: skip
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    ids = torch.tensor([[3]])
    with torch.inference_mode():
        state = of(input_ids=ids, state=of.empty_state(1, room=16)).state
        before = Graph.made
        first = step(ids, state)
        captured = step._captured
        assert captured is not None
        assert first.state is not None
        assert all(first.state.tensors[name] is tensor for name, tensor in state.tensors.items())
        # What the capture ran once is what a step gives: sums and rings were put where the state keeps them.
        assert first.state.seen.tolist() == [2]
        second = step(ids + 1, first.state)
        assert second.state is not None
        assert (second.state.columns, captured.ids.tolist()) == (3, [[4]])
        assert Graph.made == before + 1
        step(ids, of.widen(second.state, 32))
        assert Graph.made == before + 2
        step(ids, second.state.fork())
        assert Graph.made == before + 3


def test_what_cannot_be_compiled_or_put_elsewhere_is_refused(tmp_path: Any) -> None:
    from transom.cli.writing import write
    from transom.training.text import writing

    (tmp_path / "transom.json").write_text("{}")
    sampling = Sampling(max_new_tokens=1)
    with pytest.raises(InputError, match="is an export, which ONNX Runtime runs: leave compile and device out"):
        write(tmp_path, ["a"], sampling, compiled=print)
    with pytest.raises(InputError, match="a draft goes back to states that compiled steps write over"):
        write(tmp_path, ["a"], sampling, None, (tmp_path, 4), compiled=print)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="PyTorch sees no CUDA device here: use cpu"):
            writing(tmp_path, ["a"], device="cuda")


LAYERS = """
name: alike
model:
  topology: decoder
  d_model: 12
  max_seq_len: 31
  embedding: {kind: token, vocab_size: 7}
  position: rope
  layer: {norm: rms, attention: {kind: local, n_heads: 2, window: 5}, feedforward: {kind: mlp, d_ff: 14}}
  layers:
    - {repeat: 2}
    - {pattern: [{attention: {kind: local, n_heads: 2, window: 9}}], repeat: 2}
    - {pattern: [{placement: post}], repeat: 2}
    - {pattern: [{dropout: 0.1}], repeat: 1}
  norm: rms
  head: lm
"""


def test_layers_that_differ_in_options_alone_have_graphs_of_their_own() -> None:
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):  # whose entries do not undo well
        done = compile_regions(compose(parse_spec(LAYERS)), by=lambda block, **options: None)
        assert done == "7 of 7 layers compiled"
        assert torch._dynamo.config.recompile_limit == 4 * GRAPHS_A_LAYER
