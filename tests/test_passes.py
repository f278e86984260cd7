"""Passes over a translated graph change what it costs, and nothing that it gives."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from transom.deploy import export
from transom.registry.compose import compose
from transom.registry.settings import ExportSettings
from transom.registry.spec import load_spec

SMALL = ["model.d_model=32", "model.layers=[{repeat: 2}]", "model.embedding.vocab_size=67", "model.max_seq_len=50"]


def lengths(model: onnx.ModelProto, operator: str) -> list[str | int]:
    """Return for how many tokens each of some operators is computed, in order."""
    dims = {v.name: v.type.tensor_type.shape.dim for v in (*model.graph.value_info, *model.graph.output)}
    found = [dims[node.output[0]][1] for node in model.graph.node if node.op_type == operator]
    return [dim.dim_param or dim.dim_value for dim in found]


@pytest.mark.parametrize(
    ("changes", "products", "norms"),
    [
        # q, k and v; what they mix to; the two of the feedforward
        (["placement=parallel", "feedforward={kind: mlp, d_ff: 24, activation: gelu}", "norm=layer"], 3, 1),
        (["placement=sandwich", "feedforward={kind: glu, d_ff: 24, bias: true}", "norm=rms"], 3, 2),
        (["placement=post", "feedforward={kind: rwkv, d_ff: 24}", "norm=layer"], 3, 0),
    ],
    ids=["parallel", "sandwich", "a feedforward that mixes neighbours"],
)
def test_what_follows_the_last_mixing_is_computed_for_one_token(
    tmp_path: Path, changes: list[str], products: int, norms: int
) -> None:
    spec = load_spec("tiny_gpt", [*(f"model.layer.{change}" for change in changes), *SMALL])
    model = compose(spec).eval()
    report = export(model, tmp_path / "out")
    assert max(row.error for row in report.rows) < 1e-5
    graph = onnx.load(tmp_path / "out" / "model.onnx")
    found = lengths(graph, "MatMul")
    assert found == ["sequence"] * (len(found) - products - 1) + [1] * (products + 1)  # the head comes last
    assert lengths(graph, "SkipSimplifiedLayerNormalization").count(1) == norms


def test_a_graph_that_gives_all_logits_computes_all(tmp_path: Path) -> None:
    model = compose(load_spec("tiny_gpt", SMALL)).eval()
    export(model, tmp_path / "out", settings=ExportSettings(logits="all"))
    assert set(lengths(onnx.load(tmp_path / "out" / "model.onnx"), "MatMul")) == {"sequence"}
