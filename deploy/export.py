"""Export a model: its graphs, what they are, and the proof that they agree with PyTorch, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped]

from ..core.stack import Stack
from ..core.topology import Topology
from ..errors import ExportError, InputError
from ..registry.settings import ExportSettings
from ..registry.spec import load_spec
from ..registry.weights import SPEC
from .fidelity import Samples
from .gate import Limits, failures, limits
from .genai import RUNNER, write_genai
from .graph import state_facts, write_graph
from .lowering import lowered
from .manifest import MANIFEST, SCHEMA_FILE, GraphFacts, Manifest, sha256
from .parity import ALLOWED, compare
from .reduced import check_possible, exact_aside, label, reduce
from .reference import Recorder
from .report import Report, Row
from .rows import Exported
from .schema import schema
from .source import Source, read_source

LEAST = {23: "1.23", 24: "1.24"}
"""By opset, the oldest ONNX Runtime that reads its graphs."""
LATER = {("com.microsoft", "LinearAttention"): "1.26"}
"""Operators that are younger, by the oldest ONNX Runtime that has them."""


def export(
    model_or_run: Topology | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    settings: ExportSettings | None = None,
    samples: Samples | None = None,
    gate: str = "",
) -> Report:
    """Export a composed model, or the folder of a run, to the folder `out`, and return where it agrees with PyTorch.

    The folder gets a `NAME.onnx` for each graph that the model declares (with `NAME.onnx.data` above 100 MB of
    weights), `transom.json`, and the run's tokenizer where it has one, with its chat template. It is written beside its
    place and renamed, so that it is whole or not there; an earlier export in its place is replaced. `settings` are the
    spec's unless given. `samples`: of the run's data (`training.Samples`), for the loss of a smaller
    graph, and for a method that is calibrated. `gate`: what the report must keep to besides, as in
    `rms=1e-3,argmax=0.999`; `error` there is in place of the error that is allowed.

    Raises:
        ExportError: `out` holds something else, a part can't be exported, or a graph disagrees with PyTorch, or does
            not keep to the gate.
        InputError: the gate can't be read.
        CheckpointError: the run can't be read.
    """
    out = Path(out)
    _check_place(out)
    held = limits(gate)
    source = read_source(model_or_run)
    settings = settings or (source.model.spec.export if source.model.spec else ExportSettings())
    check_possible(settings, samples)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder.chmod(0o755)
        report = _write(source, folder, settings, samples, held)
        _move(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def export_settings(run: str | os.PathLike[str], changes: Sequence[str]) -> ExportSettings:
    """Return what a run's spec says of its export, with changes `export.KEY=value`.

    Raises:
        InputError: a change is of something else, which the weights are made for.
        SpecError: the spec or a change can't be read.
    """
    for change in changes:
        if not change.startswith("export."):
            raise InputError(
                f"{change}: what a run is exported to can be changed, as in export.logits=all, and no more"
            )
    return load_spec(Path(run, SPEC), changes).export


@dataclass(frozen=True)
class _Proven:
    """Hold graphs whose report passed, and what each part of them was made from."""

    exported: Exported
    report: Report
    layers: Mapping[str, str]


def _write(source: Source, folder: Path, settings: ExportSettings, samples: Samples | None, gate: Limits) -> Report:
    """Write everything that belongs in a folder."""
    model = source.model
    proven = _proven(model, folder, settings, samples, gate)
    graphs, report = dict(proven.exported.graphs), proven.report
    source.copy_text(folder)
    manifest = Manifest(
        max_seq_len=_longest(model),
        edges=tuple(sorted({edge for stack in _stacks(model) for edge in stack.edges})),
        vocab_size=source.vocab_size(_ids(graphs)),
        opset=settings.opset,
        precision=label(settings),
        graphs=graphs,
        layers=proven.layers,
        state=proven.exported.state,
        special_ids=source.special_ids,
        stop_ids=source.stop_ids,
        generates=model.generates,
        pools=model.pools,
        labels=source.labels(_classes(graphs, model.pools)),
        versions=_versions(),
        least_onnxruntime=_least(folder, graphs, settings.opset),
        parity=tuple(_plain(row) for row in report.rows),
        figures=tuple(asdict(figures) for figures in report.figures),
        gate=gate,
        spec=model.spec.resolved if model.spec else None,
    )
    runners = {RUNNER: write_genai(folder, manifest)}
    (folder / SCHEMA_FILE).write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    replace(manifest, runners=runners, files=files).write(folder)
    return report


def _proven(model: Topology, folder: Path, settings: ExportSettings, samples: Samples | None, gate: Limits) -> _Proven:
    """Write the graphs, and what PyTorch gives beside them; refuse them where they disagree with it."""
    declared, most = model.graphs(last=settings.logits == "last"), gate.get("error")
    state = {name: facts for graph in declared.values() for name, facts in state_facts(graph).items()}
    with lowered(model, settings.target) as layers:
        graphs = {name: write_graph(model, name, graph, folder, settings) for name, graph in declared.items()}
    exported, recorder, exact_alone = Exported(folder, graphs, state), Recorder(), label(settings) == "fp32"
    allowed = most if exact_alone and most is not None else ALLOWED
    report = judged = _agreeing(
        compare(declared, exported, _longest(model), target=settings.target, allowed=allowed, recorder=recorder)
    )
    if not exact_alone:
        with exact_aside(exported) as exact:
            reduced = reduce(model, settings, exact, folder, _longest(model), samples, most)
        exported, judged, layers = reduced.exported, reduced.report, reduced.layers or layers
        report = _agreeing(report + judged)
    if lines := failures(gate, judged):
        raise ExportError(f"the export does not pass the gate, and was not kept:\n{report}\n" + "\n".join(lines))
    recorder.write(folder)
    return _Proven(exported, report, layers)


def _least(folder: Path, graphs: Mapping[str, GraphFacts], opset: int) -> str:
    """Return the oldest ONNX Runtime that runs all graphs of a folder."""
    nodes = (node for facts in graphs.values() for node in ir.load(folder / facts.file).graph)
    later = {LATER[kind] for node in nodes if (kind := (node.domain, node.op_type)) in LATER}
    return max({LEAST[opset], *later}, key=lambda version: tuple(map(int, version.split("."))))


def _stacks(model: Topology) -> list[Stack]:
    return [stack for stack in model.modules() if isinstance(stack, Stack)]


def _longest(model: Topology) -> int:
    """Return how many tokens a row may have: as many as the stack that takes fewest."""
    return min(stack.site.max_seq_len for stack in _stacks(model))


def _agreeing(report: Report) -> Report:
    """Return a report whose rows all pass."""
    if report.failed:
        raise ExportError(f"the exported graph disagrees with PyTorch, and was not kept:\n{report}")
    return report


def _ids(graphs: dict[str, GraphFacts]) -> int | None:
    """Return how many ids the last graph that reads tokens knows: the one that writes, where several read."""
    read = [facts.high for graph in graphs.values() for n, facts in graph.inputs.items() if n.endswith("input_ids")]
    return read[-1] if read else None


def _classes(graphs: dict[str, GraphFacts], pools: Sequence[str]) -> int:
    """Return how many classes the first head scores that scores a whole input; 0 where none does."""
    widths = (
        facts.dims[1]
        for graph in graphs.values()
        for name, facts in graph.outputs.items()
        if len(facts.dims) == 2 and name not in pools
    )
    return int(next(widths, 0))


def _plain(row: Row) -> dict[str, Any]:
    errors = {name: float(f"{error:.3g}") for name, error in row.errors.items()}
    return {**asdict(row), "error": float(f"{row.error:.3g}"), "errors": errors}


def _versions() -> dict[str, str]:
    """Return the versions of what wrote the folder, and of the runtime that checked it."""
    libraries = {name: version(name) for name in ("transom", "torch", "onnx", "onnxscript")}
    return {**libraries, "onnxruntime": ort.__version__}


def _check_place(out: Path) -> None:
    """Refuse a place that holds anything but an earlier export."""
    if out.is_dir() and not out.is_symlink():
        if not any(out.iterdir()):
            return
        try:
            known = {MANIFEST, *Manifest.read(out).files}
        except ExportError:
            raise ExportError(f"{out}: is a folder that no export made: choose another, or empty it") from None
        others = sorted({path.name for path in out.iterdir()} - known)
        if others:
            raise ExportError(f"{out}: holds an export, but {', '.join(others)} too: move that away first")
    elif out.exists() or out.is_symlink():
        raise ExportError(f"{out}: is no folder: choose another place")


def _move(folder: Path, out: Path) -> None:
    """Put a whole folder in its place; what was there goes only then."""
    if not out.exists():
        folder.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old)  # a folder may replace an empty one
    folder.rename(out)
    shutil.rmtree(old)
