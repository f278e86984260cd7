"""Lowerings stand in for `forward` while a graph is exported, and only then."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

from transom.core.lowering import TARGETS
from transom.deploy import ArrayRuntime, export
from transom.deploy.lowering import lowered
from transom.errors import ExportError
from transom.registry.compose import compose
from transom.registry.settings import ExportSettings
from transom.registry.spec import load_spec

SMALL = ["model.d_model=24", "model.layers=[{repeat: 1}]", "model.embedding.vocab_size=67", "model.max_seq_len=50"]


def model_of(attention: str) -> torch.nn.Module:
    return compose(load_spec("tiny_gpt", [f"model.layer.attention={attention}", *SMALL]))


@pytest.mark.parametrize("attention", ["{kind: local, n_heads: 4, window: 5}", "{kind: sparse, n_heads: 4, block: 4}"])
def test_a_lowering_gives_what_forward_gives(attention: str) -> None:
    model = model_of(attention)
    mechanism = model.get_submodule("decoder.layers.0.attention.mechanism")
    ids = torch.randint(67, (3, 41))
    want = model(input_ids=ids).logits
    calls = Counter[str]()
    name = "decoder.layers.0.attention.mechanism"
    for target in TARGETS:
        with lowered(model, target) as said:
            assert mechanism.forward == mechanism.masked
            torch.testing.assert_close(model(input_ids=ids).logits, want, rtol=1e-5, atol=1e-5)
        calls[said[name].partition(": ")[2]] += 1
        assert "forward" not in vars(mechanism)
    assert calls == {"masked, its lowering for onnx": 2}
    assert said["decoder.layers.0.feedforward"].endswith("it offers no lowering for ort")


def test_a_lowering_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("{kind: local, n_heads: 4, window: 5}")
    mechanism = model.get_submodule("decoder.layers.0.attention.mechanism")
    monkeypatch.setattr(type(mechanism), "lowers", {"ort": "fussed"})
    with lowered(model, "onnx"):
        pass
    with (
        pytest.raises(ExportError, match=r"LocalAttention\.lowers: there is no method 'fussed'"),
        lowered(model, "ort"),
    ):
        pass
    assert "forward" not in vars(mechanism)


@pytest.mark.parametrize(("position", "option"), [("rope", "scale: 0.9"), ("alibi", "soft_cap: 0.5")])
def test_a_full_layer_is_one_operator_that_takes_chunks_row_by_row(tmp_path: Path, position: str, option: str) -> None:
    heads = f"{{kind: full, n_heads: 4, n_kv_heads: 2, head_dim: 8, {option}}}"
    changes = [f"model.layer.attention={heads}", f"model.position={position}", *SMALL]
    model = compose(load_spec("tiny_gpt", changes)).eval()
    report = export(model, tmp_path / "out")
    assert max(row.error for row in report.rows) < 1e-5
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    nodes = Counter(node.op_type for node in graph.node)
    assert (nodes["GroupQueryAttention"], nodes["ScatterElements"], nodes["Softmax"]) == (1, 0, 0)
    runtime = ArrayRuntime(tmp_path / "out")
    assert runtime.manifest.graphs["model"].rows_alone
    ids = torch.randint(67, (3, 21))
    mask = torch.ones_like(ids)
    mask[1, 5:9] = mask[2, :9] = 0  # a row without any token yet
    state = runtime.start(3)
    for part in (slice(0, 9), slice(9, 20), slice(20, 21)):
        got, state = runtime.step(ids[:, part].numpy(), mask[:, part].numpy(), state)
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "position", "turned"),
    [
        ("head_dim: 16, n_kv_heads: 1, bias: true", "{kind: rope, theta: 500.0}", 8),
        ("head_dim: 32, n_kv_heads: 2, gate: joint", "{kind: rope, layout: interleaved, fraction: 0.5}", 8),
        ("head_dim: 16, qk_norm: rms, bias: [q]", "rope", 8),
        ("head_dim: 16, n_kv_heads: 2", "[rope, alibi]", None),
    ],
    ids=["plain", "interleaved, half of a head", "norms of q and k", "scores that positions add to"],
)
def test_projections_go_to_the_operator_as_they_are(tmp_path: Path, options: str, position: str, turned: int) -> None:
    changes = [f"model.layer.attention={{kind: full, n_heads: 4, {options}}}", f"model.position={position}", *SMALL]
    model = compose(load_spec("tiny_gpt", changes)).eval()
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    report = export(model, tmp_path / "out")
    assert max(row.error for row in report.rows) < 2e-5
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    nodes = Counter(node.op_type for node in graph.node)
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    [node] = (node for node in graph.node if node.op_type == "GroupQueryAttention")
    assert (node.input[1] == "") == ("norm" not in options and turned is not None)
    tables = [sizes[name] for name in node.input[7:9] if name]
    assert tables == [] if turned is None else tables == [(100, turned)] * 2  # twice max_seq_len
    assert (nodes["Cos"], nodes["SkipSimplifiedLayerNormalization"]) == (0 if turned else 1, 2)
    # A chunk of more columns than a row may have tokens, most of them padding.
    runtime, ids = ArrayRuntime(tmp_path / "out"), torch.randint(67, (2, 77))
    mask = torch.zeros_like(ids)
    mask[0, 3:31] = mask[1, 60:] = 1
    _, state = runtime.step(ids[:, :5].numpy(), mask[:, :5].numpy(), runtime.start(2))
    got, _ = runtime.step(ids[:, 5:].numpy(), mask[:, 5:].numpy(), state)
    with torch.no_grad():
        want = model(input_ids=ids[1:, 60:]).logits[:, -1]
    torch.testing.assert_close(torch.from_numpy(got[1:]), want, rtol=1e-4, atol=1e-4)


def test_what_an_operator_does_not_take_stays_as_it_is_and_says_why() -> None:
    with lowered(model_of("{kind: full, n_heads: 4}"), "ort") as said:
        assert said["decoder.layers.0.attention.mechanism"] == (
            "attention full: its forward; GroupQueryAttention takes no head_dim of 6, which is no multiple of 8"
        )
    with lowered(compose(load_spec("tiny_bert")), "ort") as said:
        assert said["encoder.layers.0.attention.mechanism"].endswith("for tokens that see those before them")


def test_a_local_layer_is_one_attention_in_a_graph(tmp_path: Path) -> None:
    model = model_of("{kind: local, n_heads: 4, window: 5}")
    report = export(model, tmp_path / "out", settings=ExportSettings(target="onnx"))
    assert not report.failed
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node)
    assert nodes["Attention"] == 1
    assert nodes["Softmax"] == 0
    assert nodes["GatherND"] == 2  # the next ring of keys and of values: whole entries, none picked number by number
    said = json.loads((tmp_path / "out" / "transom.json").read_text())["layers"]
    assert said["decoder.layers.0.attention.mechanism"] == "attention local: masked, its lowering for onnx"


def test_sums_that_a_state_carries_are_one_operator_that_takes_a_token_at_a_time(tmp_path: Path) -> None:
    layers = {
        "{kind: linear, n_heads: 6, n_kv_heads: 2}": 2,
        "{kind: performer, n_heads: 3, n_kv_heads: 3, n_features: 10}": 2,  # what it divides by is a sum of its own
        "{kind: retention, n_heads: 3, v_dim: 5}": 1,
        "{kind: gated_linear, n_heads: 2, head_dim: 7}": 1,
        "{kind: state_space, n_heads: 6, d_state: 9, n_groups: 2}": 1,
        "{kind: gated_delta, n_heads: 6, n_key_heads: 2, head_dim: 11, key_dim: 5}": 1,
    }
    pattern = ", ".join(f"{{attention: {kind}}}" for kind in layers)
    changes = [*SMALL, "model.position=none", f"model.layers=[{{pattern: [{pattern}]}}]"]
    model = compose(load_spec("tiny_gpt", changes)).eval()
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    assert max(row.error for row in export(model, tmp_path / "out").rows) < 2e-5
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node)
    assert (nodes["LinearAttention"], nodes["Scan"], nodes["CumSum"]) == (sum(layers.values()), 0, 1)
    runtime = ArrayRuntime(tmp_path / "out")
    assert runtime.manifest.least_onnxruntime == "1.26"
    ids, mask = torch.randint(67, (3, 23)), torch.ones(3, 23, dtype=torch.long)
    mask[1, 4:9] = mask[2, :8] = 0
    state = runtime.start(3)
    for part in (slice(0, 8), slice(8, 22), slice(22, 23)):
        got, state = runtime.step(ids[:, part].numpy(), mask[:, part].numpy(), state)
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-3, atol=1e-4)
