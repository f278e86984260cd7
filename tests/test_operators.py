"""A traced program is decomposed node by node to the same numbers as by tracing it again, and no longer graph."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from transom.deploy.operators import RULES, shorten

N, T = torch.export.Dim("n"), torch.export.Dim("t")
Traced = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def heads(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Go apart into heads, turn, and come together: of what lies apart in memory too."""
    apart = x.unflatten(-1, (3, 4)).transpose(1, 2)
    return (
        apart.transpose(1, 2).flatten(2),
        x.view(x.shape[0], -1, 3, 4),
        apart.reshape(x.shape[0], -1, 4),
        apart.mT.flatten(0, 1),
        apart.movedim(1, -1) * 2,
    )


def longer(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Have lengths that no input has: sums and products of theirs."""
    both = torch.cat([x, y, x], dim=1)
    return (both.unflatten(-1, (2, 6)).flatten(1, 2), both.flatten(0, 1).unflatten(-1, (4, 3)))


def pieces(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Be cut, by parts and by lengths."""
    one, two, three = x.chunk(3, dim=-1)
    return (one * two, x.narrow(1, 0, y.shape[1]).exp(), x.narrow(2, 2, 5), y.narrow(1, 1, y.shape[1] - 1), three)


def other_names(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Call what the translator knows by names that it does not know."""
    one, two = x > 0.2, x < 0.7
    return (((one & two) | (x > 0.9)).float(), x.square(), 2 - x, 1 - x.long(), torch.tanh(x).add_(1), x[0].T)


def the_same(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Do nothing: casts to what a tensor is, constants, detached, dropout of what is not in training."""
    told, cast = torch.tensor([1.0, -2.0, 0.5]).detach(), x.float().to(torch.float32).detach()
    cast = F.dropout(cast, 0.5, training=False)
    return (cast + y.sum(), x.to(torch.int64), told, x.to(x.dtype) * 2, y.expand_as(y) + 1)


pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's, of its own
GRAPHS = (heads, longer, pieces, other_names, the_same)


class _Graph(nn.Module):
    def __init__(self, traced: Traced) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return self.traced(x, y)


def program_of(traced: Traced) -> ExportedProgram:
    """Trace with lengths that vary."""
    example = (torch.rand(3, 11, 12), torch.rand(3, 7, 12))
    shapes = {"x": {0: N, 1: T}, "y": {0: N, 1: torch.export.Dim("u")}}
    return torch.export.export(
        _Graph(traced), example, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
    )


def translated(program: ExportedProgram) -> tuple[ort.InferenceSession, int]:
    """Return what runs a program's graph, and how many nodes that has."""
    done = torch.onnx.export(program, verbose=False, input_names=["x", "y"])
    assert done is not None
    with tempfile.TemporaryDirectory() as folder:
        done.save(Path(folder) / "graph.onnx")
        return ort.InferenceSession(str(Path(folder) / "graph.onnx")), len(list(done.model.graph))


def never(self: ExportedProgram, *_: Any, **__: Any) -> ExportedProgram:
    raise AssertionError("traced again")


@pytest.mark.parametrize("traced", GRAPHS, ids=lambda traced: traced.__name__)
def test_a_graph_is_as_by_tracing_again(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = translated(program_of(traced))
    monkeypatch.setattr(ExportedProgram, "run_decompositions", never)
    program = program_of(traced)
    shorten(program)
    session, nodes = translated(program)
    assert nodes <= whole + 2  # lengths that are read off both inputs
    for n, t, u in ((2, 9, 5), (5, 13, 2), (1, 3, 3)):
        x, y = torch.rand(n, t, 12), torch.rand(n, u, 12)
        got = session.run(None, {"x": x.numpy(), "y": y.numpy()})
        for mine, wanted in zip(got, traced(x, y), strict=True):
            np.testing.assert_allclose(mine, wanted.numpy(), rtol=1e-6, atol=1e-6)


def test_each_rule_is_met() -> None:
    met = {node.target for traced in GRAPHS for node in program_of(traced).graph.nodes}
    assert RULES.keys() <= met, RULES.keys() - met


def written(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Write into a part of a tensor that is read again."""
    whole = x * 2
    whole[:, :1] += 1.0
    return (whole, whole.sum(), y + 1)


def test_what_no_rule_knows_is_traced_again() -> None:
    program = program_of(written)
    asked: list[object] = []
    whole = program.run_decompositions
    program.run_decompositions = lambda *a, **k: asked.append(a) or whole(*a, **k)  # type: ignore[method-assign,func-returns-value]
    shorten(program)
    session, _ = translated(program)
    assert len(asked) == 1
    x, y = torch.rand(2, 9, 12), torch.rand(2, 5, 12)
    for mine, wanted in zip(session.run(None, {"x": x.numpy(), "y": y.numpy()}), written(x, y), strict=True):
        np.testing.assert_allclose(mine, wanted.numpy(), rtol=1e-5, atol=1e-6)
