"""Round matrices for the data that they will meet: column by column, each making up for those before it.

GPTQ: Frantar et al. 2022, https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped]
import torch
from torch import Tensor

from ..core.objective import Prepared
from ..errors import ExportError
from ..registry.settings import QuantizeSettings
from .blocks import Grid, Rounded, best_codes, codes_of
from .fidelity import Samples
from .matrices import Matrix, products
from .quantize import Round, nearest_codes
from .rows import Arrays, Exported, columns, cut, lacking
from .session import CPU, empty_state

DAMPED = 0.01
"""What is added to the moments of the data, of their mean, so that few rows do not decide alone."""
LAZY = 128  # columns after which the rest of the matrix hears of the errors
ROOM = 1 << 28  # entries of moments that are gathered at once; the data is read once for each lot
TAPPED = "tapped.onnx"


def calibrated(exact: Exported, settings: QuantizeSettings, samples: Samples) -> Round:
    """Return how to round each matrix of the exact graphs for rows of the run's data.

    A matrix that is only looked up, or stands in a graph within a graph, is rounded by itself.

    Raises:
        ExportError: the graphs read something that is not in the data.
        DataError: the data can't be read.
    """
    assert settings.samples is not None
    rows = samples.learned(settings.samples)
    if lost := lacking(exact.graphs, _arrays(rows[0])):
        raise ExportError(f"export.quantize: gptq can't read the run's data: it gives no {lost}; use int4")
    models = {name: ir.load(exact.folder / facts.file) for name, facts in exact.graphs.items()}
    waiting = [
        (name, matrix) for name, model in models.items() for matrix in products(model) if _is_outer(matrix, model)
    ]
    kept: dict[str, Tensor] = {}

    def rounding(matrix: Matrix, grid: Grid) -> Rounded:
        name = str(matrix.node.name)
        if name not in kept:
            kept.clear()  # matrices come in the order in which they stand here
            kept.update(_moments(exact, models, _lot(waiting, name), rows))
        return round_for(matrix.weight(), kept[name], grid) if name in kept else nearest_codes(matrix, grid)

    return rounding


def round_for(weight: Tensor, moments: Tensor, grid: Grid) -> Rounded:
    """Round a matrix (K, N) so that its products change least with data of second moments (K, K)."""
    rows, size = len(weight), grid.block_size
    spare = -rows % size
    left = torch.nn.functional.pad(weight.T.float(), (0, spare)).contiguous()
    upper = _conditioned(torch.nn.functional.pad(moments, (0, spare, 0, spare)))
    step = max(LAZY, size)
    codes, scales, zeros = torch.empty_like(left), [], []
    for start in range(0, rows + spare, step):
        part = left[:, start : start + step]
        errors = torch.empty_like(part)
        factors = upper[start : start + step, start : start + step]
        for column in range(part.shape[1]):
            if column % size == 0:
                _, scale, zero = best_codes(part[:, column : column + size], grid)
                scales.append(scale)
                zeros.append(zero)
            code = codes_of(part[:, column : column + 1], scale, zero, grid)[:, 0]
            codes[:, start + column] = code
            errors[:, column] = (part[:, column] - (code - zero) * scale) / factors[column, column]
            part[:, column + 1 :] -= errors[:, column : column + 1] * factors[column, column + 1 :]
        left[:, start + step :] -= errors @ upper[start : start + step, start + step :]
    return Rounded(grid, codes.unflatten(1, (-1, size)), torch.stack(scales, 1), torch.stack(zeros, 1))


def _conditioned(moments: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of damped moments; what never occurs makes up for nothing."""
    diagonal = moments.diagonal()
    moments = moments + torch.diag(torch.where(diagonal == 0, 1.0, DAMPED * diagonal.mean()))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper


# -- the data's moments -----------------------------------------------------------------------------------------------


def _arrays(prepared: Prepared) -> Arrays:
    return {name: tensor.numpy() for name, tensor in prepared.inputs.items()}


def _is_outer(matrix: Matrix, model: ir.Model) -> bool:
    """Say whether what a matrix is multiplied with is a value of the graph itself."""
    return matrix.node.graph is model.graph


def _lot(waiting: Sequence[tuple[str, Matrix]], first: str) -> dict[str, list[Matrix]]:
    """Return the matrices from one on, by graph, whose moments there is room for; nothing where it is none of them."""
    names = [str(matrix.node.name) for _, matrix in waiting]
    lot: dict[str, list[Matrix]] = {}
    room = ROOM
    for graph, matrix in waiting[names.index(first) :] if first in names else ():
        room -= matrix.rows**2
        if lot and room < 0:
            break
        lot.setdefault(graph, []).append(matrix)
    return lot


def _moments(
    exact: Exported, models: Mapping[str, ir.Model], lot: Mapping[str, Sequence[Matrix]], rows: Sequence[Prepared]
) -> dict[str, Tensor]:
    """Return the second moments (K, K) of what each matrix of a lot is multiplied with, by the name of its node."""
    sums: dict[str, Tensor] = {}
    sessions = {name: _tapped(exact, name, models[name], lot.get(name, ())) for name in exact.graphs}
    for row in rows:
        for name, found in _run(exact, sessions, _arrays(row)):
            shared: dict[str, Tensor] = {}
            for matrix in lot.get(name, ()):
                value = _input(matrix)
                if value not in shared:
                    x = torch.from_numpy(found[value]).float().flatten(0, -2)
                    shared[value] = x.T @ x
                node = str(matrix.node.name)
                sums[node] = sums[node] + shared[value] if node in sums else shared[value]
    return sums


def _input(matrix: Matrix) -> str:
    value = matrix.node.inputs[0]
    assert value is not None
    return str(value.name)


def _tapped(exact: Exported, name: str, model: ir.Model, matrices: Sequence[Matrix]) -> ort.InferenceSession:
    """Start a graph that gives what its matrices are multiplied with, besides its outputs."""
    before = list(model.graph.outputs)
    known = {value.name for value in before}
    taps = {_input(matrix): matrix.node.inputs[0] for matrix in matrices if _input(matrix) not in known}
    model.graph.outputs.extend(value for value in taps.values() if value is not None)
    path = exact.folder / f"{name}.{TAPPED}"
    ir.save(model, path)  # its weights stay where they are, in the file beside it
    del model.graph.outputs[len(before) :]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=[CPU])


def _run(exact: Exported, sessions: Mapping[str, ort.InferenceSession], inputs: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Yield all that each graph gives for whole rows, one graph after the other."""
    batch = len(next(iter(inputs.values())))
    room = max(columns(facts, inputs) for facts in exact.graphs.values())
    # Copies: a value made from an array is a view of it, and frees it.
    state = {name: value.numpy().copy() for name, value in empty_state(exact.state, batch, room).items()}
    for name, facts in exact.graphs.items():
        feeds = cut(facts, inputs, slice(0, columns(facts, inputs)))
        feeds |= {exact.state[n].input: state[n] for n in facts.takes}
        names = [output.name for output in sessions[name].get_outputs()]
        found = dict(zip(names, sessions[name].run(names, feeds), strict=True))
        state |= {n: found[exact.state[n].output] for n in facts.gives}
        yield name, found
