"""Run the report of an exported folder anew, with ONNX Runtime alone: on another machine, or another provider."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ExportError
from .gate import failures, limits
from .manifest import Manifest
from .reference import read
from .report import Report, Row
from .session import chosen, providers, sessions
from .walk import Masks, Walk


def check(folder: str | os.PathLike[str], *, provider: str | None = None, gate: str | None = None) -> Report:
    """Run an exported folder's cases, and compare what its graphs give with what PyTorch gave when it was exported.

    That is kept in the folder, at some places of every output and of every tensor of the state. `provider`: the one to
    run on; all of this machine unless given. `gate`: limits as `--gate` takes them, in place of the folder's own.

    Raises:
        ExportError: the folder is not whole, or its graphs disagree by more than was allowed, or than the gate lets
            pass.
        InputError: the gate can't be read.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    held = dict(manifest.gate) if gate is None else limits(gate)
    manifest.check_files(folder)
    there = providers() if provider is None else [chosen(provider)]
    report = Report(tuple(row for each in there for row in _rows(folder, manifest, each, held.get("error"))))
    if failed := report.failed:
        raise ExportError(f"{folder}: disagrees with PyTorch in {len(failed)} of {len(report.rows)} cases:\n{report}")
    if gate is None:  # of its own limits those that need no data were kept to at its export
        held = {name: limit for name, limit in held.items() if name not in ("kl", "loss")}
    if lines := failures(held, report):
        raise ExportError(f"{folder}: does not pass the gate:\n{report}\n" + "\n".join(lines))
    return report


def _rows(folder: Path, manifest: Manifest, provider: str, most: float | None) -> list[Row]:
    """Return a row for each case that the folder keeps; `most`: the largest error that passes, if not the folder's."""
    said = [row for row in manifest.parity if row.get("precision") == manifest.precision]
    allowed = max((float(row["allowed"]) for row in said), default=0.0) if most is None else most
    target = next((str(row.get("target", "")) for row in said), "")
    graphs = sessions(folder, manifest, provider)
    rows = []
    for case, reader in read(folder, manifest.graphs):
        walk, masks = Walk(graphs, manifest.state, case), Masks()
        for call, last in case.ending():
            outputs, state = walk.run(call, masks.inputs(manifest.graphs[call.graph], call))
            found = {**outputs, **(state if last else {})}
            walk.tally.add({name: reader.next(name, array) for name, array in found.items()}, found, call.inputs)
        rows.append(walk.tally.row(case.title, provider, manifest.precision, target, allowed))
    return rows
