"""Make an exported folder smaller, in precision and by quantizing, and measure what that costs in truth."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.topology import Topology
from ..errors import ExportError
from ..registry.settings import ExportSettings
from . import precision as precisions
from .calibrate import calibrated
from .fidelity import Samples, figures
from .graph import state_facts, write_graph
from .lowering import lowered
from .manifest import StateFacts
from .parity import compare
from .quantize import METHODS, Round, nearest_codes, quantize
from .report import Report
from .rows import Exported


@dataclass(frozen=True)
class Reduced:
    """Hold what replaced the exact graphs, and the rows and figures that tell of it."""

    exported: Exported
    report: Report
    layers: dict[str, str]


def label(settings: ExportSettings) -> str:
    """Name what the weights are of: `fp32` for the exact graphs, `fp16`, `int4`, `fp16 int4`."""
    method = settings.quantization.method if settings.quantization else ""
    precision = "" if method and settings.precision == "fp32" else settings.precision
    return f"{precision} {method}".strip()


def check_possible(settings: ExportSettings, samples: Samples | None) -> None:
    """Refuse before anything is made what could not be made.

    Raises:
        ExportError: there are no kernels for the precision, or no data to calibrate on.
    """
    precisions.check_kernels(settings.precision)
    if settings.quantization is not None and METHODS[settings.quantization.method].calibrated and samples is None:
        method = settings.quantization.method
        raise ExportError(f"export.quantize: {method} rounds for a run's data: export the folder of a run, or use int4")


def reduce(
    model: Topology,
    settings: ExportSettings,
    exact: Exported,
    folder: Path,
    max_seq_len: int,
    samples: Samples | None,
    most: float | None = None,
) -> Reduced:
    """Write to `folder` the graphs of `exact` in the precision and with the codes that the settings ask for.

    `model`: in fp32 on CPU, with whose functions the new graphs are compared as the exact ones were. `most`: the
    largest error that passes, if not the usual one.

    Raises:
        ExportError: a pattern of what to leave out matches nothing.
        DataError: the data can't be read that a method is calibrated on.
    """
    name = label(settings)
    made, layers = exact, dict[str, str]()
    if settings.precision != "fp32":
        place = folder if settings.quantization is None else exact.folder / settings.precision
        made, layers = _written(model, settings, place)
    quantized: list[str] = []
    if settings.quantization is not None:
        rounding: Round = nearest_codes
        if METHODS[settings.quantization.method].calibrated and samples is not None:
            rounding = calibrated(_of_all_tokens(model, settings, exact), settings.quantization, samples)
        for facts in exact.graphs.values():
            quantized += quantize(made.folder / facts.file, folder / facts.file, settings.quantization, rounding)
        made = replace(made, folder=folder)
    functions = model.graphs(last=settings.logits == "last")
    allowed = _allowed(settings) if most is None else most
    rows = compare(functions, made, max_seq_len, target=settings.target, precision=name, allowed=allowed).rows
    measured = replace(figures(name, exact, made, samples), quantized=tuple(dict.fromkeys(quantized)))
    return Reduced(made, Report(rows, (measured,)), layers)


def _allowed(settings: ExportSettings) -> float:
    """Return the largest error beyond which a graph is broken, not coarse."""
    allowed = precisions.ALLOWED.get(settings.precision, 0.0)
    method = METHODS[settings.quantization.method] if settings.quantization else None
    return max(allowed, method.allowed) if method else allowed


def _of_all_tokens(model: Topology, settings: ExportSettings, exact: Exported) -> Exported:
    """Return exact graphs whose heads read every token: those of rows' last tokens alone would say little of a head."""
    if settings.logits == "all":
        return exact
    everything = ExportSettings(target=settings.target, opset=settings.opset, logits="all")
    return _written(model, everything, exact.folder / "all")[0]


def _written(model: Topology, settings: ExportSettings, folder: Path) -> tuple[Exported, dict[str, str]]:
    """Write the graphs of a model in the settings' precision; what it remembers follows its declarations."""
    folder.mkdir(exist_ok=True)
    dtype = precisions.DTYPES[settings.precision]
    lower = precisions.in_precision(model, settings.precision)
    declared = lower.graphs(last=settings.logits == "last")
    state: dict[str, StateFacts] = {}
    for graph in declared.values():
        state |= state_facts(graph, dtype)
    with lowered(lower, settings.target) as layers:
        graphs = {n: write_graph(lower, n, graph, folder, settings, dtype) for n, graph in declared.items()}
    return Exported(folder, graphs, state), layers


@contextmanager
def exact_aside(exported: Exported) -> Iterator[Exported]:
    """Keep the exact graphs in a place of their own for a while, so that others can take theirs."""
    files = list(exported.folder.iterdir())
    with tempfile.TemporaryDirectory(prefix=".exact.", dir=exported.folder) as place:
        for path in files:
            path.rename(Path(place, path.name))
        yield replace(exported, folder=Path(place))
