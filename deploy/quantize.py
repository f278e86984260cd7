"""Quantize the weights of an exported graph: matrices become codes of a few bits that ONNX Runtime multiplies with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ..errors import ExportError
from ..registry.settings import QuantizeSettings
from .blocks import Grid, Rounded, round_blocks
from .graph import save
from .matrices import Matrix, check_patterns, lookups, matches, products

DOMAIN = "com.microsoft"
LARGEST = 64
"""The largest code of int8: processors without VNNI add two products with bytes in 16 bits, and 2 * 255 * 64 fits."""
WIDE = 8  # bits of what is to be wider than the rest

Arrays = Mapping[str, NDArray[Any] | None]


@dataclass(frozen=True)
class Stored:
    """Hold a quantized matrix: the operator that multiplies with it, its further inputs by name, and its attributes.

    An input is None that is left out.
    """

    op_type: str
    inputs: Arrays
    attributes: Mapping[str, int]


Round = Callable[[Matrix, Grid], Rounded]
"""How the matrix of a product is rounded to a grid."""


@dataclass(frozen=True)
class Method:
    """Say how a method stores a matrix, and the largest error that its graph may have, relative to a tensor's largest
    magnitude: beyond it the graph is broken, not coarse.

    `calibrated`: whether it rounds for the run's data.
    """

    store: Callable[[Matrix, QuantizeSettings, Round], Stored]
    allowed: float
    calibrated: bool = False


def _dynamic(matrix: Matrix, settings: QuantizeSettings, rounding: Round) -> Stored:
    """Store int8 weights with a scale a column; what they are multiplied with is rounded to 8 bits as it comes."""
    weight = matrix.weight()
    scales = weight.abs().amax(0) / LARGEST
    codes = (weight / scales.clamp(min=torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
    arrays: Arrays = {"codes": codes.contiguous().numpy(), "scales": scales.numpy(), "zeros": None, "bias": None}
    return Stored("DynamicQuantizeMatMul", arrays, {})


def _blocks(bits: int) -> Callable[[Matrix, QuantizeSettings, Round], Stored]:
    def store(matrix: Matrix, settings: QuantizeSettings, rounding: Round) -> Stored:
        assert settings.block_size is not None
        assert settings.accuracy_level is not None
        own = WIDE if matches(matrix.module, settings.wide or ()) else bits
        grid = Grid(own, settings.block_size, bool(settings.symmetric))
        rounded = rounding(matrix, grid)
        codes, scales, zeros = rounded.packed()
        attributes = {"K": matrix.rows, "N": len(codes), "bits": own, "block_size": grid.block_size}
        level = {"accuracy_level": settings.accuracy_level}
        arrays: Arrays = {"codes": codes, "scales": scales, "zeros": zeros, "order": None, "bias": None}
        return Stored("MatMulNBits", arrays, {**attributes, **level})

    return store


METHODS: Mapping[str, Method] = {
    "int8": Method(_dynamic, 1.0),
    "int8_weights": Method(_blocks(8), 0.5),
    "int4": Method(_blocks(4), 2.0),
    "gptq": Method(_blocks(4), 2.0, calibrated=True),
}


def nearest_codes(matrix: Matrix, grid: Grid) -> Rounded:
    """Round a matrix by itself."""
    return round_blocks(matrix.weight(), grid)


def quantize(path: Path, out: Path, settings: QuantizeSettings, rounding: Round = nearest_codes) -> tuple[str, ...]:
    """Write the graph at `path` to `out` with its matrices quantized, and return the modules that were.

    Raises:
        ExportError: a pattern matches no module that has a matrix, or rows that are looked up are no whole blocks.
    """
    model = ir.load(path)
    found = [*products(model), *(lookups(model) if settings.embedding else ())]
    for option in ("leave_out", "wide"):
        check_patterns(option, getattr(settings, option) or (), [matrix.module for matrix in found])
    chosen = [matrix for matrix in found if not matches(matrix.module, settings.leave_out)]
    made: dict[tuple[str, bool], tuple[Stored, list[ir.Value | None]]] = {}
    for matrix in chosen:
        key = (str(matrix.stored.name), matrix.turned)
        if key not in made:  # what a head multiplies with and an embedding looks up is stored once
            stored = METHODS[settings.method].store(matrix, settings, rounding)
            made[key] = stored, _register(model.graph, matrix, stored)
        _replace(matrix, _looking_up(matrix, *made[key]) if matrix.looked_up else _multiplying(matrix, *made[key]))
    model.opset_imports[DOMAIN] = 1
    _sweep(model.graph)
    save(model, out)
    return tuple(dict.fromkeys(matrix.module for matrix in chosen))


def _register(graph: ir.Graph, matrix: Matrix, stored: Stored) -> list[ir.Value | None]:
    """Make initializers of what is stored, named after the module that it is of."""
    assert matrix.stored.dtype is not None
    values: list[ir.Value | None] = []
    for suffix, array in stored.inputs.items():
        if array is None:
            values.append(None)
            continue
        typed = array.astype(matrix.stored.dtype.numpy()) if array.dtype == np.float32 else array
        values.append(_initializer(graph, f"{matrix.module}.{suffix}", typed))
    return values


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _multiplying(matrix: Matrix, stored: Stored, values: Sequence[ir.Value | None]) -> list[ir.Node]:
    """Return the operator that multiplies with a quantized matrix."""
    inputs = [matrix.node.inputs[0], *values[:-1], matrix.bias]
    while inputs[-1] is None:
        inputs.pop()
    return [ir.node(stored.op_type, inputs, dict(stored.attributes), domain=DOMAIN, name=matrix.node.name)]


def _looking_up(matrix: Matrix, stored: Stored, values: Sequence[ir.Value | None]) -> list[ir.Node]:
    """Return the operator that looks up rows of a quantized matrix, and what lays its codes out as it wants them."""
    block, width = stored.attributes["block_size"], stored.attributes["K"]
    if width % block:
        raise ExportError(
            f"export.quantize.embedding: rows of {matrix.module} have {width} numbers, which are no blocks of {block}: "
            "choose another block_size, or leave the embedding as it is"
        )
    codes, scales, zeros = values[:3]
    assert codes is not None
    assert codes.const_value is not None
    root = matrix.stored.graph
    assert root is not None
    rows, blocks, bytes_ = codes.const_value.shape.numpy()
    shape = _initializer(root, f"{matrix.module}.shape", np.array([rows, blocks * bytes_], dtype=np.int64))
    flat = ir.node("Reshape", [codes, shape], name=f"{matrix.module}/Reshape_codes")
    inputs = [flat.outputs[0], matrix.node.inputs[1], scales, *([] if zeros is None else [zeros])]
    attributes = {"bits": stored.attributes["bits"], "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    return [flat, ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=matrix.node.name)]


def _replace(matrix: Matrix, nodes: Sequence[ir.Node]) -> None:
    """Put nodes, the last of which gives what was given, in the place of the one that uses a matrix."""
    old, given = matrix.node.outputs[0], nodes[-1].outputs[0]
    given.shape, given.type = old.shape, old.type
    name = old.name
    assert matrix.node.graph is not None
    ir.convenience.replace_nodes_and_values(matrix.node.graph, matrix.node, [matrix.node], nodes, [old], [given])
    given.name = name


def _sweep(graph: ir.Graph) -> None:
    """Take out what nothing reads any more."""
    for node in [node for node in graph if node.op_type == "Transpose"]:
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    outputs = set(graph.outputs)
    for name in [n for n, value in graph.initializers.items() if not value.uses() and value not in outputs]:
        del graph.initializers[name]
