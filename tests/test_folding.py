"""Layers that are alike are traced once, and the graph is as if each had been."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import transom
from transom.core.component import Site
from transom.deploy import graph as graphs
from transom.deploy.alike import Placeless, alike
from transom.deploy.folding import AGAIN, DOMAIN, unfold
from transom.deploy.lowering import lowered
from transom.plugins.feedforward.glu import GluFeedForward

# Layers, and how many of them are not traced.
FOLDED = {
    "alike": ([], 3),
    "two kinds in turn": (
        ["model.layers=[{repeat: 3, pattern: [{attention: {kind: full}}, {attention: {kind: local, window: 5}}]}]"],
        4,
    ),
    "positions of their own": (
        ["model.position=none", "model.layer.position={kind: rope, theta: 500.0}", "model.layers=[{repeat: 3}]"],
        2,
    ),
    "a loop in each": (["model.layer.attention={kind: rg_lru, n_heads: 4}", "model.layers=[{repeat: 3}]"], 2),
    "another width": (["model.layers=[{repeat: 2}, {pattern: [{feedforward: {d_ff: 200}}]}]"], 1),
    "a scale by depth": (["model.layer.attention={kind: full, n_heads: 4, depth_scale: true}"], 0),
}


def written(model: Any, folder: Path, *, folds: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[onnx.GraphProto, int]:
    """Write the graph of a decoder; return it, and how many of its layers were not traced."""
    left_out = 0

    def count(found: Any, graph: ir.Graph) -> None:
        nonlocal left_out
        left_out += sum(node.domain == DOMAIN and node.op_type == AGAIN for node in graph)
        unfold(found, graph)

    settings = model.spec.export
    with monkeypatch.context() as patch, lowered(model, settings.target):
        patch.setattr(graphs, "unfold", count)
        if not folds:
            patch.setattr(graphs, "folded", lambda function: nullcontext([]))
        (graph,) = model.graphs(last=False).values()
        folder.mkdir()
        graphs.write_graph(model, "model", graph, folder, settings)
    return onnx.load(folder / "model.onnx").graph, left_out


@pytest.mark.parametrize(("overrides", "fewer"), FOLDED.values(), ids=FOLDED)
def test_a_graph_is_as_when_each_layer_is_traced(
    overrides: list[str], fewer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = transom.compose(transom.load_spec("tiny_gpt", overrides)).eval()
    ours, left_out = written(model, tmp_path / "ours", folds=True, monkeypatch=monkeypatch)
    whole, none = written(model, tmp_path / "whole", folds=False, monkeypatch=monkeypatch)
    assert (left_out, none) == (fewer, 0)
    assert [(node.name, node.op_type) for node in ours.node] == [(node.name, node.op_type) for node in whole.node]
    assert [value.name for value in ours.output] == [value.name for value in whole.output]
    assert set(weights(ours)) == set(weights(whole))
    assert len(ours.initializer) <= len(whole.initializer)
    assert {node.domain for node in ours.node} <= {"", "com.microsoft"}


def weights(graph: onnx.GraphProto) -> list[tuple[Any, ...]]:
    arrays = [np.asarray(numpy_helper.to_array(tensor)) for tensor in graph.initializer]
    return [(array.shape, array.tobytes()) for array in arrays]


def test_a_layer_that_asks_for_its_place_as_it_runs_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = GluFeedForward.forward

    def by_depth(self: Any, x: Tensor, context: Any, state: Any = None) -> Any:
        y, after = plain(self, x, context, state)
        return y * (1.0 + self.site.layer), after

    monkeypatch.setattr(GluFeedForward, "forward", by_depth)
    model = transom.compose(transom.load_spec("tiny_gpt", [])).eval()
    ours, left_out = written(model, tmp_path / "ours", folds=True, monkeypatch=monkeypatch)
    assert left_out == 0
    factors = {float(value) for kept in weights(ours) if kept[0] == () for value in np.frombuffer(kept[1], np.float32)}
    assert {2.0, 3.0, 4.0, 5.0} <= factors
    assert all(type(module.site) is Site for module in model.modules() if hasattr(module, "site"))


class Part(nn.Module):
    """A module with a weight, a number, a table, a site and a method for a forward."""

    def __init__(self, width: int = 3, scale: float = 0.5, layer: int = 1, table: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 3)
        self.scale = scale
        self.site = Site(d_model=width, max_seq_len=7, layer=layer)
        self.tables = {"here": torch.arange(table)}
        self.act = self.twice
        self.tied = self.inner

    def twice(self, x: Tensor) -> Tensor:
        return 2 * x

    def thrice(self, x: Tensor) -> Tensor:
        return 3 * x


def test_modules_are_alike_up_to_weights_and_place() -> None:
    one = Part()
    assert alike(one, Part(layer=5))
    assert not alike(one, Part(width=4))
    assert not alike(one, Part(scale=0.25))
    assert not alike(one, Part(table=5))
    other = Part()
    other.act = other.thrice
    assert not alike(one, other)
    other = Part()
    other.tied = nn.Linear(3, 3)  # not the same one twice
    assert not alike(one, other)
    assert not alike(other, one)
    other = Part()
    other.inner.register_buffer("more", torch.zeros(1))
    assert not alike(one, other)
    other = Part().double()
    assert not alike(one, other)
    shared = Part()
    shared.inner.weight = one.inner.weight
    assert alike(one, shared)


def test_a_site_without_a_place_notes_who_asks() -> None:
    site = Placeless.of(Site(d_model=6, max_seq_len=9, layer=3))
    assert (site.d_model, site.max_seq_len, site.asked) == (6, 9, False)
    assert site.layer == 3
    assert site.asked
