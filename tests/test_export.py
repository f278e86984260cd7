"""Exported graphs agree with PyTorch at shapes of the tests' own, say what they are, and are whole or not there."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from transom.core.activation import ACTIVATIONS
from transom.core.context import Context
from transom.core.topology import Topology
from transom.deploy import Report, export, graph
from transom.deploy.manifest import MANIFEST, Manifest
from transom.deploy.walk import relative_error
from transom.errors import CheckpointError, ExportError
from transom.registry.compose import compose
from transom.registry.settings import ExportSettings
from transom.registry.spec import parse_spec

# Every growth of state in one model: appended, ring, fixed, and a ring beside a fixed head.
HYBRID = """
model:
  topology: decoder
  d_model: 24
  max_seq_len: 90
  embedding: {kind: token, vocab_size: 53}
  position: rope
  layer: {norm: rms, attention: {kind: full, n_heads: 4, n_kv_heads: 2}, feedforward: {kind: glu, d_ff: 20}}
  layers:
    - pattern:
        - {}
        - attention: {kind: linear}
        - attention: {kind: sparse, block: 4, n_window: 2}
  norm: rms
  head: {kind: lm, tied: true}
"""
ACTIVE = f"""
model:
  topology: decoder
  d_model: 20
  max_seq_len: 9
  embedding: {{kind: token, vocab_size: 11}}
  position: none
  layer: {{norm: rms, attention: none, feedforward: {{kind: mlp, d_ff: 34}}}}
  layers:
{chr(10).join(f"    - {{pattern: [{{feedforward: {{activation: {name}}}}}]}}" for name in ACTIVATIONS)}
  norm: rms
  head: lm
"""
ROOM = 40  # slots that these tests need at most
SMALL = """
model:
  topology: decoder
  d_model: 8
  max_seq_len: 9
  embedding: {kind: token, vocab_size: 11}
  position: none
  layer: {norm: none, attention: none, feedforward: {kind: mlp, d_ff: 6}}
  layers: [{repeat: 1}]
  norm: rms
  head: lm
"""


class Exported(NamedTuple):
    model: Topology
    folder: Path
    report: Report
    manifest: Manifest


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export a hybrid that is in training and in fp64."""
    model = compose(parse_spec(HYBRID)).double().train()
    folder = tmp_path_factory.mktemp("export") / "deep" / "out"
    report = export(model, folder, settings=ExportSettings(target="onnx"))
    return Exported(model, folder, report, Manifest.read(folder))


class Walk:
    """Step an exported decoder with nothing but ONNX Runtime and the names in transom.json."""

    def __init__(self, exported: Exported, batch: int) -> None:
        self.session = ort.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.facts = exported.manifest.state
        self.mask = torch.zeros(batch, 0, dtype=torch.int64)
        self.state: dict[str, Any] = {
            facts.input: np.full(
                [d if isinstance(d, int) else {"batch": batch, "past": ROOM}[d] for d in facts.dims],
                facts.fill,
                facts.dtype,
            )
            for facts in self.facts.values()
        }

    def step(self, ids: Tensor, mask: Tensor) -> Any:
        """Return the logits, and keep the state and the mask, which is of all columns since the first step."""
        self.mask = torch.cat([self.mask, mask], dim=1)
        names = ["logits", *(facts.output for facts in self.facts.values())]
        feeds = {"input_ids": ids.numpy(), "attention_mask": self.mask.numpy(), **self.state}
        logits, *state = self.session.run(names, feeds)
        self.state = dict(zip((facts.input for facts in self.facts.values()), state, strict=True))
        return logits


def test_the_report_covers_every_tensor_at_three_shapes(hybrid: Exported) -> None:
    rows = hybrid.report.rows
    assert [row.case for row in rows] == [
        *("whole 1x5", "steps 1x5+32", "chunks 1x5", "padded 1x5"),
        *("whole 2x19", "steps 2x19+32", "chunks 2x19", "padded 2x19", "ragged 2x19"),
        *("whole 3x58", "steps 3x58+32", "chunks 3x58", "padded 3x58", "ragged 3x58"),
    ]
    for row in rows:
        assert set(row.errors) == {"logits", *hybrid.manifest.state}
        assert 0 < row.error < 1e-5 < row.allowed
        assert row.agreement == 1
        assert row.case in str(hybrid.report)
    assert [said["error"] for said in hybrid.manifest.parity] == pytest.approx([row.error for row in rows], rel=0.01)


def test_chunks_with_padding_anywhere_give_the_logits_of_rows_alone(hybrid: Exported) -> None:
    model = copy.deepcopy(hybrid.model).float().eval()
    rows = [torch.randint(53, (length,)) for length in (29, 17, 1)]
    ids, mask = torch.randint(53, (3, 31)), torch.zeros(3, 31, dtype=torch.int64)
    places = [torch.randperm(31)[: len(row)].sort().values for row in rows]
    for row, (tokens, place) in enumerate(zip(rows, places, strict=True)):
        ids[row, place], mask[row, place] = tokens, 1
    walk = Walk(hybrid, 3)
    sizes, seen, compared = [7, 1, 20, 3], [0, 0, 0], 0
    with torch.no_grad():
        wanted = [model(input_ids=tokens.unsqueeze(0)).logits[0].numpy() for tokens in rows]
    for chunk, real in zip(ids.split(sizes, 1), mask.split(sizes, 1), strict=True):
        got = walk.step(chunk, real)
        for row, count in enumerate(real.sum(1).tolist()):
            seen[row] += count
            if count:  # the logits are those of the last real token
                compared += 1
                assert relative_error(got[row, 0], wanted[row][seen[row] - 1]) < 1e-5
    assert compared > len(rows)
    assert seen == [len(row) for row in rows]


def test_transom_json_and_the_graph_say_the_same(hybrid: Exported) -> None:
    manifest, declared = hybrid.manifest, hybrid.model.declared()
    facts = manifest.graphs["model"]
    # How many tokens came before, and where they stand, follows from the mask.
    assert manifest.state.keys() == declared.keys() - {"seen", "pos"} == set(facts.takes) == set(facts.gives)
    assert {n: entry.grows for n, entry in manifest.state.items()} == {
        n: "slots" if declared[n].grows == "append" else declared[n].grows for n in manifest.state
    }
    assert facts.inputs["attention_mask"].dims == ("batch", "total")
    assert manifest.spec == hybrid.model.spec.resolved
    assert (manifest.max_seq_len, manifest.vocab_size, manifest.runners) == (90, 53, {"onnxruntime-genai": ""})
    model = onnx.load(hybrid.folder / "model.onnx")
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (10, [("", 24)])
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    state = {entry.input: entry.dims for entry in manifest.state.values()}
    assert dims(model.graph.input) == {**{n: put.dims for n, put in facts.inputs.items()}, **state}
    given = dims(model.graph.output)
    assert given["logits"] == facts.outputs["logits"].dims == ("batch", 1, 53)
    for name, entry in manifest.state.items():
        assert given[entry.output] == entry.dims == declared[name].dims


def dims(values: Any) -> dict[str, tuple[str | int, ...]]:
    return {v.name: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def test_the_model_that_was_given_stays_as_it_is(hybrid: Exported) -> None:
    fresh = compose(parse_spec(HYBRID)).double()
    assert hybrid.model.training
    for name, tensor in hybrid.model.state_dict().items():
        assert tensor.dtype == torch.float64
        assert torch.equal(tensor, fresh.state_dict()[name])


def test_an_export_replaces_an_export_and_nothing_else(
    hybrid: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = compose(parse_spec(SMALL)), tmp_path / "out"
    shutil.copytree(hybrid.folder, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds an export, but notes\.txt too"):
        export(model, out)
    (out / "notes.txt").unlink()
    monkeypatch.setattr(graph, "EXTERNAL", 100)  # bytes: the weights go to a file of their own
    export(model, out, settings=ExportSettings(opset=23, logits="all"))
    manifest = Manifest.read(out)
    assert (manifest.opset, manifest.vocab_size, len(manifest.parity)) == (23, 11, 14)
    assert (manifest.least_onnxruntime, hybrid.manifest.least_onnxruntime) == ("1.23", "1.24")
    assert manifest.graphs["model"].outputs["logits"].dims == ("batch", "sequence", 11)
    graphs = {"model.onnx", "model.onnx.data", "genai.onnx", "genai_config.json"}
    assert manifest.files.keys() == {*graphs, "folder.schema.json", "reference.safetensors"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    (out / MANIFEST).write_text("{}")
    with pytest.raises(ExportError, match="a folder that no export made"):
        export(model, out)
    with pytest.raises(ExportError, match="is no folder"):
        export(model, out / "model.onnx")


class Changed(nn.Module):
    """Put a change behind a head."""

    per_token = True

    def __init__(self, head: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.change = head, change

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.change(self.head(hidden, mask))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x * (1.01 if torch.compiler.is_exporting() else 1.0),
            r"disagrees with PyTorch(.|\n)*\nwhole 1x5 .* error 1\.0e-02 \(logits\), allowed 1e-04",
        ),
        (
            lambda x: x * (int(x.shape[1]) % 7),
            r"graph 'model' can't be exported: dimension sequence must take any length",
        ),
        (
            lambda x: x.sum(1, keepdim=True).expand(-1, 5, -1),
            r"graph 'model': logits: dimension sequence must vary, but came out as 5",
        ),
        (
            lambda x: torch.geqrf(x)[0],
            r"can't be exported: UnsupportedOperatorException: aten\.geqrf\.default$",
        ),
    ],
    ids=["disagrees", "a number of a length", "a fixed length", "no operator"],
)
def test_what_fails_leaves_nothing_behind(tmp_path: Path, change: Callable[[Tensor], Tensor], message: str) -> None:
    model = compose(parse_spec(SMALL))
    model.heads["head"] = Changed(model.head, change)
    with pytest.raises(ExportError, match=message):
        export(model, tmp_path / "out", settings=ExportSettings(logits="all"))
    assert not list(tmp_path.iterdir())


def test_a_part_that_does_not_write_to_its_slots_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "append", lambda self, old, new, dim=1: torch.cat([old, new], dim=dim))
    model = compose(parse_spec(HYBRID))
    with pytest.raises(ExportError, match=r"layers\.0\.attention: .* take context\.append\(state\['k'\], new, dim=2\)"):
        export(model, tmp_path / "out", settings=ExportSettings(target="onnx"))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="meta device"):
        export(compose(parse_spec(SMALL), device="meta"), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"is no run: .*spec\.yaml is missing"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "spec.yaml").write_text(SMALL)
    with pytest.raises(CheckpointError, match="has no weights yet"):
        export(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("found", "wanted", "error"),
    [
        ([1.0, -4.02], [1.0, -4.0], 0.005),
        ([0.5], [0.0], 0.5),
        ([], [], 0.0),
        ([np.nan], [1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        (np.array([7, 2]), np.array([7, 2]), 0.0),
        (np.array([7, 2]), np.array([7, 3]), np.inf),
        (np.array([7]), np.array([7.0]), np.inf),
    ],
)
def test_errors_are_relative_to_the_largest_magnitude(found: Any, wanted: Any, error: float) -> None:
    assert relative_error(np.asarray(found), np.asarray(wanted)) == pytest.approx(error)


def test_every_activation_is_exported(tmp_path: Path) -> None:
    """A layer for each, fed numbers on which those that saturate do, and without any of which the logits are others."""
    model, ids = compose(parse_spec(ACTIVE)), torch.arange(27).reshape(3, 9) % 11
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(8.0 if "feedforward.up" in name else 1.0)
    wanted = model(input_ids=ids).logits.detach().numpy()
    for name, other in zip(ACTIVATIONS, [*list(ACTIVATIONS)[1:], "tanh"], strict=True):
        changed = compose(parse_spec(ACTIVE.replace(f"activation: {name}}}", f"activation: {other}}}")))
        changed.load_state_dict(model.state_dict())
        assert relative_error(changed(input_ids=ids).logits.detach().numpy(), wanted) > 1e-5, name
    assert max(row.error for row in export(model, tmp_path / "out").rows) < 1e-5
