"""An exported folder's report runs anew without PyTorch, and gates say what of a report fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from transom.cli import main
from transom.deploy import Report, Runtime, bench, check, export
from transom.deploy.cases import numbers
from transom.deploy.gate import failures, limits
from transom.deploy.manifest import MANIFEST, Manifest, sha256
from transom.deploy.reference import POINTS, REFERENCE, Notes, Reader, places
from transom.deploy.report import Figures, Row
from transom.deploy.walk import Tally, Wanted, Whole
from transom.errors import ExportError, InputError
from transom.registry.compose import compose
from transom.registry.settings import ExportSettings
from transom.registry.spec import parse_spec

WRITER = """
model:
  topology: encoder_decoder
  d_model: 24
  max_seq_len: 47
  embedding: {kind: token, vocab_size: 37}
  position: none
  layer: {norm: rms, attention: {kind: full, n_heads: 3}, feedforward: none}
  decoder:
    layer: {cross_attention: {kind: full, n_heads: 3}}
    layers: [{repeat: 1, pattern: [{attention: lstm}]}]
  layers: [{repeat: 1}]
  norm: rms
  head: lm
"""
SEER = """
model:
  topology: encoder
  d_model: 16
  max_seq_len: 26
  embedding: {kind: patch_2d, image_size: 10, patch_size: 2}
  position: learned
  layer: {norm: layer, attention: {kind: full, n_heads: 2}, feedforward: {kind: mlp, d_ff: 20}}
  layers: [{repeat: 1}]
  norm: layer
  head: {kind: classifier, n_classes: 5}
"""


class Exported(NamedTuple):
    folder: Path
    report: Report


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("check") / "out"
    torch.manual_seed(3)
    gate = "rms=1e-4,argmax=0.99,ties=0.5"
    return Exported(folder, export(compose(parse_spec(WRITER)), folder, gate=gate))


def _altered(folder: Path, to: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """Return a copy of a folder whose last graph was changed, and which says so."""
    shutil.copytree(folder, to)
    path = to / [*Manifest.read(to).graphs.values()][-1].file
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return _listed(to)


def _listed(folder: Path) -> Path:
    said = json.loads((folder / MANIFEST).read_text())
    said["files"] = {name: sha256(folder / name) for name in said["files"]}
    (folder / MANIFEST).write_text(json.dumps(said))
    return folder


def test_the_report_runs_anew_without_torch(writer: Exported) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        f"from transom.cli import main; main(['export', '--check', {str(writer.folder)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [row.case for row in writer.report.rows]
    assert all("CPUExecutionProvider  error " in line and "same token 100.0%" in line for line in lines)


def test_it_is_of_every_case_and_every_tensor(writer: Exported) -> None:
    report, manifest = check(writer.folder, provider="CPUExecutionProvider"), Manifest.read(writer.folder)
    shapes = ("1x5", "2x19", "3x24")
    cases = {f"{kind} {shape}" for kind in ("whole", "chunks", "padded", "ragged") for shape in shapes} - {"ragged 1x5"}
    assert {row.case for row in report.rows} == cases | {"steps 1x5+32", "steps 2x19+28", "steps 3x24+23"}
    outputs = {name for facts in manifest.graphs.values() for name in facts.outputs}
    for row, whole in zip(report.rows, writer.report.rows, strict=True):
        assert (row.case, row.precision, row.target) == (whole.case, "fp32", "ort")
        assert row.errors.keys() == whole.errors.keys() == {*outputs, *manifest.state}
        assert row.error <= whole.error < 1e-5  # places of what the whole is of
        assert row.error > whole.error / 30
        assert (row.agreement, row.ambiguous) == (1, 0)
        assert row.rms == pytest.approx(whole.rms, rel=0.9)


def test_a_bench_reads_sources_and_writes_about_them(writer: Exported) -> None:
    found = bench(writer.folder, lengths=[40, 3], batch=2, tokens=20, rounds=3)
    assert [speed.length for speed in found.speeds] == [40, 3]
    for speed in found.speeds:
        assert speed.first is not None
        assert speed.decode is not None
        assert 0 < speed.prefill.low < speed.first.low
        assert speed.decode.low > 0
    assert found.speeds[0].state > found.speeds[1].state  # type: ignore[operator]
    with pytest.raises(InputError, match="lengths: 48; this model takes 1 to max_seq_len = 47"):
        bench(writer.folder, lengths=[48])


def test_other_weights_are_found_out(writer: Exported, tmp_path: Path) -> None:
    def louder(model: onnx.ModelProto) -> None:
        table = max(model.graph.initializer, key=lambda one: np.prod(one.dims))
        table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) * np.float32(1.02), table.name))

    folder = _altered(writer.folder, tmp_path / "out", louder)
    with pytest.raises(
        ExportError, match=r"disagrees with PyTorch in 14 of 14 cases:\nwhole 1x5 .* error [1-9]\.\de-02"
    ):
        check(folder)
    assert check(folder, gate="error=0.5").rows  # what the caller lets pass
    with pytest.raises(
        ExportError, match=r"(?s)does not pass the gate:.*\nwhole 2x19 fp32 CPU\w+: rms 0\.\d+, allowed at most 0"
    ):
        check(folder, gate="error=0.5,rms=1e-4")


def test_a_folder_is_held_to_the_gate_of_its_export(writer: Exported, tmp_path: Path) -> None:
    folder = shutil.copytree(writer.folder, tmp_path / "out")
    said = json.loads((folder / MANIFEST).read_text())
    assert said["gate"] == {"rms": 1e-4, "argmax": 0.99, "ties": 0.5}
    said["gate"] = {"rms": 1e-9, "loss": 0.1}  # of a loss nothing is said here: there is no data
    (folder / MANIFEST).write_text(json.dumps(said))
    with pytest.raises(
        ExportError, match=r"(?s)does not pass the gate:.*: rms [\d.e-]+, allowed at most 1e-09"
    ) as error:
        check(folder)
    assert "loss" not in str(error.value)
    assert check(folder, gate="").rows
    with pytest.raises(ExportError, match="loss: nothing here measures it"):
        check(folder, gate="loss=0.1")


def test_a_reference_that_is_missing_or_of_another_folder_is_refused(writer: Exported, tmp_path: Path) -> None:
    folder = shutil.copytree(writer.folder, tmp_path / "out")
    (folder / REFERENCE).write_bytes((folder / REFERENCE).read_bytes()[:-40])
    with pytest.raises(ExportError, match=r"reference\.safetensors: does not fit this folder \(.+\): export again"):
        check(_listed(folder))
    said = json.loads((folder / MANIFEST).read_text())
    del said["files"][REFERENCE]
    (folder / MANIFEST).write_text(json.dumps(said))
    (folder / REFERENCE).unlink()
    with pytest.raises(ExportError, match=r"reference\.safetensors: is missing, so there is nothing to check against"):
        check(folder)
    with pytest.raises(ExportError, match=r"CUDExecutionProvider: this machine runs"):
        check(folder, provider="CUDExecutionProvider")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: case["calls"][0].update(graph="other"), "'other'"),
        (lambda case: case["calls"][0]["inputs"].pop("input_ids"), "graph encoder takes input_ids, attention_mask"),
        (lambda case: case.update(rows=3), "its cases are not of as many rows as they say"),
        (lambda case: case["calls"][0]["inputs"].update(input_ids=[[1, 1 << 40], 7]), "input_ids is not of a size"),
        (lambda case: case["calls"][0]["inputs"].update(input_ids=[[1, 99999], None]), "it ends too early"),
        (lambda case: case["calls"].pop(), "it holds more than the graphs give"),
    ],
)
def test_a_reference_whose_calls_no_graph_takes_is_refused(
    writer: Exported, tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    folder = shutil.copytree(writer.folder, tmp_path / "out")
    held = (folder / REFERENCE).read_bytes()
    size = int.from_bytes(held[:8], "little")
    head = json.loads(held[8 : 8 + size])
    cases = json.loads(head["__metadata__"]["cases"])
    change(cases[0])
    head["__metadata__"]["cases"] = json.dumps(cases)
    written = json.dumps(head).encode()
    written += b" " * (-len(written) % 8)
    (folder / REFERENCE).write_bytes(len(written).to_bytes(8, "little") + written + held[8 + size :])
    with pytest.raises(ExportError, match=rf"reference\.safetensors: does not fit this folder \({message}.*\): export"):
        check(_listed(folder))


def test_an_onnxruntime_that_is_too_old_is_refused(writer: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", "1.23.9")
    for load in (check, bench, Runtime):
        with pytest.raises(ExportError, match=r"out: takes ONNX Runtime 1\.24 or later, and this is 1\.23\.9: install"):
            load(writer.folder)
    monkeypatch.setattr(ort, "__version__", "1.100.0")
    assert Runtime(writer.folder).arrays.manifest.opset == 24


def test_numbers_of_images_come_back_from_their_seeds(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"(?s)does not pass the gate, and was not kept:\n.*: rms .* at most 1e-12"):
        export(compose(parse_spec(SEER)), tmp_path / "out", gate="rms=1e-12")
    assert not list(tmp_path.iterdir())
    report = export(compose(parse_spec(SEER)), tmp_path / "out", settings=ExportSettings(target="onnx"))
    again = check(tmp_path / "out")
    assert [row.case for row in again.rows] == ["whole 1x5", "whole 2x13", "whole 3x13"]
    assert all(0 < row.error <= whole.error for row, whole in zip(again.rows, report.rows, strict=True))
    assert {row.target for row in again.rows} == {"onnx"}
    (speed,) = bench(tmp_path / "out", rounds=2).speeds  # an image has no length, and is not written about
    assert (speed.length, speed.first, speed.decode, speed.state) == (0, None, None, None)
    assert speed.prefill.median > 0


def test_numbers_are_the_same_everywhere() -> None:
    """Hold the first numbers of a seed against SplitMix64 in whole numbers without a limit."""
    drawn, state = numbers(77, [7, 3]), 77
    for number in drawn.ravel().tolist():
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = state
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> shift)) * factor % 2**64
        assert number == pytest.approx(((mixed ^ (mixed >> 31)) >> 40) / 2**24 * 12**0.5 - 3**0.5, abs=1e-6)
    many = numbers(5, [40, 50, 10])
    assert abs(many.mean()) < 0.02
    assert many.std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("size", [0, 1, POINTS, POINTS + 1, 4096, 99991])
def test_places_are_many_and_follow_no_dimension(size: int) -> None:
    found = places(size)
    assert len(found) == len(set(found.tolist())) == min(size, POINTS) or len(found) > POINTS * 0.8
    assert not len(found) or 0 <= found.min() <= found.max() < size
    if size == 4096:
        assert len(set((found % 64).tolist())) > 30


def _kept(logits: np.ndarray[Any, Any]) -> Wanted:
    notes = Notes()
    notes.add("logits", logits)
    floats = np.concatenate([np.ravel(each).astype(np.float32) for each in notes.floats])
    reader = Reader(Path("x"), floats, np.concatenate([np.ravel(each).astype(np.int32) for each in notes.ints]))
    found = reader.next("logits", logits)
    reader.end()
    return found


def test_of_equal_logits_the_first_is_the_best() -> None:
    logits = np.zeros((2, 3, 59), dtype=np.float32)
    logits[1, 1, 20:40] = 1.0
    logits[1, 2, [50, 9]] = 2.0, 3.0
    assert np.array_equal(_kept(logits).best, [[0, 0, 0], [0, 20, 9]])
    assert np.array_equal(_kept(logits).margin(np.full((2, 3), 50)), [[np.inf] * 3, [np.inf, np.inf, 1.0]])
    assert np.array_equal(_kept(logits[..., :5]).margin(np.full((2, 3), 4)), np.zeros((2, 3)))


@pytest.mark.parametrize("known", [Whole, _kept], ids=["whole", "kept"])
def test_near_ties_are_counted_apart(known: Callable[[np.ndarray[Any, Any]], Wanted]) -> None:
    random = np.random.default_rng(9)
    exact = random.standard_normal((5, 3, 211)).astype(np.float32)
    exact[..., 7] = 9.0
    exact[0, :, 100] = 8.99  # three near ties
    exact[1, 0, 100] = 5.0
    found = exact + random.choice([-0.05, 0.05], exact.shape).astype(np.float32)
    found[..., 7], found[0, :, 100] = 8.98, 9.0
    found[1, 0, 100] = found[4, 2, 100] = 10.0  # and two that are none; of the second one nothing was kept
    mask = np.ones((5, 3), dtype=np.int64)
    mask[0, 0] = mask[3] = 0  # padding counts for nothing: one near tie less, and three that agree
    tally = Tally()
    tally.add({"logits": known(exact)}, {"logits": found}, {"attention_mask": mask})
    row = tally.row("a", "b", "int4", "ort", 2.0)
    assert row.agreement == pytest.approx(7 / 11)
    assert row.ambiguous == pytest.approx(2 / 11)
    assert row.tokens == "same token 63.6%, another in a near tie 18.2%, another 18.2%"
    report = Report((row,))
    assert not failures(limits("argmax=0.77"), report)
    assert failures(limits("argmax=0.78,ties=0.1"), report) == [
        "a int4 b: argmax 0.777778, allowed at least 0.78",
        "a int4 b: ties 0.181818, allowed at most 0.1",
    ]


def test_gates_are_of_rows_and_of_figures() -> None:
    row = Row("whole 1x5", "CPU", "int4", 2.0, {"logits": 0.1, "k": 0.2}, None)
    facts: dict[str, Any] = {"precision": "int4", "provider": "CPU", "read": "7 rows", "bytes": 1, "exact_bytes": 2}
    figures = Figures(**facts, error=0.05, rms=0.01, same=0.6, ambiguous=0.3, kl=0.02, loss=3.5, exact_loss=3.25)
    report = Report((row,), (figures,))
    kept = limits("error=0.2,rms=0.01,argmax=0.85,ties=0.3,kl=0.02,loss=0.25")
    assert not failures(kept, report)
    tight = {name: limit * (1.01 if name == "argmax" else 0.99) for name, limit in kept.items()}
    assert [line.split(":")[0] for line in failures(tight, report)] == ["whole 1x5 int4 CPU"] + 5 * [
        "int4 CPU on 7 rows"
    ]
    nan = Figures(**facts, error=float("nan"), rms=float("nan"), unknown="no data")
    assert failures(limits("rms=9,loss=9"), Report((row,), (nan,))) == [
        "int4 CPU on 7 rows: rms nan, allowed at most 9",
        "loss: nothing here measures it (no data)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rmse=1", r"gate: 'rmse=1': no measure 'rmse' \(did you mean rms\?\); there are error, rms, argmax, ties, kl"),
        ("rms", r"gate: 'rms': must be one number of at least 0, as in rms=0\.01"),
        ("kl=1e-3,kl=1", "gate: 'kl=1': must be one number"),
        ("argmax=1.01", "gate: 'argmax=1.01': must be one number from 0 to 1"),
        ("error=nan", "gate: 'error=nan': must be"),
        ("error=inf", "gate: 'error=inf': must be"),
        ("loss=-1", "gate: 'loss=-1': must be"),
    ],
)
def test_a_gate_that_says_nothing_is_refused(text: str, message: str, writer: Exported) -> None:
    with pytest.raises(InputError, match=message):
        check(writer.folder, gate=text)
    assert limits("") == {}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "--check", "out"], "run: goes with an export; --check out takes no RUN and no -o"),
        (["run"], "an export takes RUN, the folder of a run, and --out DIR, the one to write; or else --check DIR"),
        (["run", "-o", "x", "--provider", "CPU"], "--provider CPU: goes with --check; an export is checked on every"),
        (["run", "-o", "x", "--to", "hf", "--gate", "rms=1"], "--gate rms=1: goes with a graph"),
    ],
)
def test_what_does_not_go_together_is_said(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", *args])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
