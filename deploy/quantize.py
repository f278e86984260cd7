"""Quantize the weights of an exported graph: matrices become codes of a few bits that ONNX Runtime multiplies with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ExportError
from ..registry.settings import QuantizeSettings
from .blocks import Grid, Rounded, round_blocks
from .graph import save

DOMAIN = "com.microsoft"
SMALLEST = 4  # weights of a column below which codes with a scale take more room than the weights

Arrays = Mapping[str, NDArray[Any] | None]


@dataclass(frozen=True, eq=False)
class Product:
    """Describe a product with a stored matrix: `node`, the name of the module it is of, and the matrix it takes.

    `turned`: whether the matrix is stored as (N, K) and taken as (K, N). `bias`: what the node adds.
    """

    node: ir.Node
    module: str
    stored: ir.Value
    turned: bool
    bias: ir.Value | None

    @property
    def rows(self) -> int:
        """Return K, how many numbers are multiplied with a column."""
        return sizes_of(self.stored)[1 if self.turned else 0]

    def weight(self) -> Tensor:
        """Return the matrix (K, N), fp32."""
        assert self.stored.const_value is not None
        weight = torch.from_numpy(self.stored.const_value.numpy().astype(np.float32))
        return weight.T if self.turned else weight


@dataclass(frozen=True)
class Stored:
    """Hold a quantized matrix: the operator that multiplies with it, its further inputs by name, and its attributes.

    An input is None that is left out.
    """

    op_type: str
    inputs: Arrays
    attributes: Mapping[str, int]


Round = Callable[[Product, Grid], Rounded]
"""How the matrix of a product is rounded to a grid."""


@dataclass(frozen=True)
class Method:
    """Say how a method stores a matrix, and the largest error that its graph may have, relative to a tensor's largest
    magnitude: beyond it the graph is broken, not coarse.
    """

    store: Callable[[Product, QuantizeSettings, Round], Stored]
    allowed: float


def _dynamic(product: Product, settings: QuantizeSettings, rounding: Round) -> Stored:
    """Store int8 weights with a scale a column; what they are multiplied with is rounded to 8 bits as it comes."""
    weight = product.weight()
    scales = weight.abs().amax(0) / 127
    codes = (weight / scales.clamp(min=torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
    arrays: Arrays = {"codes": codes.contiguous().numpy(), "scales": scales.numpy(), "zeros": None, "bias": None}
    return Stored("DynamicQuantizeMatMul", arrays, {})


def _blocks(bits: int) -> Callable[[Product, QuantizeSettings, Round], Stored]:
    def store(product: Product, settings: QuantizeSettings, rounding: Round) -> Stored:
        assert settings.block_size is not None
        assert settings.accuracy_level is not None
        grid = Grid(bits, settings.block_size, bool(settings.symmetric))
        rounded = rounding(product, grid)
        codes, scales, zeros = rounded.packed()
        attributes = {"K": product.rows, "N": len(codes), "bits": bits, "block_size": grid.block_size}
        level = {"accuracy_level": settings.accuracy_level}
        arrays: Arrays = {"codes": codes, "scales": scales, "zeros": zeros, "order": None, "bias": None}
        return Stored("MatMulNBits", arrays, {**attributes, **level})

    return store


METHODS: Mapping[str, Method] = {
    "int8": Method(_dynamic, 1.0),
    "int8_weights": Method(_blocks(8), 0.5),
    "int4": Method(_blocks(4), 2.0),
}


def nearest_codes(product: Product, grid: Grid) -> Rounded:
    """Round a matrix by itself."""
    return round_blocks(product.weight(), grid)


def quantize(path: Path, out: Path, settings: QuantizeSettings, rounding: Round = nearest_codes) -> tuple[str, ...]:
    """Write the graph at `path` to `out` with its matrices quantized, and return the modules that were.

    Raises:
        ExportError: a pattern of `leave_out` matches no module that has a matrix.
    """
    model = ir.load(path)
    found = list(products(model))
    check_patterns(settings.leave_out, [product.module for product in found])
    chosen = [product for product in found if not is_left_out(product.module, settings.leave_out)]
    made: dict[tuple[str, bool], tuple[Stored, list[ir.Value | None]]] = {}
    for product in chosen:
        key = (str(product.stored.name), product.turned)
        if key not in made:  # a matrix that several products take is stored once
            stored = METHODS[settings.method].store(product, settings, rounding)
            made[key] = stored, _register(model.graph, product.stored, stored)
        _replace(product, *made[key])
    model.opset_imports[DOMAIN] = 1
    _sweep(model.graph)
    save(model, out)
    return tuple(dict.fromkeys(product.module for product in chosen))


def products(model: ir.Model) -> Iterator[Product]:
    """Yield the products of a graph and of those inside it whose second factor is a stored matrix."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        plain = node.op_type == "MatMul" or (node.op_type == "Gemm" and _is_plain(node))
        if node.domain or not plain:
            continue
        factor = node.inputs[1]
        assert factor is not None
        turn = factor.producer()
        turned = turn is not None and turn.op_type == "Transpose" and _perm(turn) == [1, 0]
        stored = turn.inputs[0] if turned and turn is not None else factor
        if stored is None or not stored.is_initializer() or stored.const_value is None:
            continue
        sizes = sizes_of(stored)
        if len(sizes) == 2 and stored.const_value.dtype.is_floating_point() and min(sizes) >= SMALLEST:
            transposed = node.op_type == "Gemm" and bool(_attribute(node, "transB", 0))
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            yield Product(node, module_of(node), stored, turned != transposed, bias)


def sizes_of(stored: ir.Value) -> tuple[int, ...]:
    """Return the sizes of what is stored."""
    assert stored.const_value is not None
    return tuple(stored.const_value.shape.numpy())


def module_of(node: ir.Node) -> str:
    """Return the name of the module that a node is of, as `layers` of `transom.json` names it."""
    return str(node.name).partition("/")[0]


def check_patterns(patterns: Sequence[str], modules: Sequence[str]) -> None:
    """Refuse a pattern that matches none of the modules."""
    for pattern in patterns:
        if not any(is_left_out(module, [pattern]) for module in modules):
            near = get_close_matches(pattern, modules, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise ExportError(f"export.quantize.leave_out: {pattern}: no module with a matrix has such a name{hint}")


def is_left_out(module: str, patterns: Sequence[str]) -> bool:
    """Say whether a pattern matches a module, or one that it is inside of."""
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _is_plain(node: ir.Node) -> bool:
    """Say whether a Gemm is a product and a sum and no more."""
    return _attribute(node, "alpha", 1.0) == _attribute(node, "beta", 1.0) == 1.0 and not _attribute(node, "transA", 0)


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _perm(node: ir.Node) -> list[int]:
    return list(_attribute(node, "perm", []))


def _register(graph: ir.Graph, weight: ir.Value, stored: Stored) -> list[ir.Value | None]:
    """Make initializers of what is stored, named after the matrix."""
    assert weight.dtype is not None
    values: list[ir.Value | None] = []
    for suffix, array in stored.inputs.items():
        if array is None:
            values.append(None)
            continue
        typed = array.astype(weight.dtype.numpy()) if array.dtype == np.float32 else array
        name = f"{weight.name}.{suffix}"
        while name in graph.initializers:
            name += "_"
        tensor = ir.tensor(typed, name=name)
        value = ir.Value(name=name, shape=ir.Shape(typed.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        values.append(value)
    return values


def _replace(product: Product, stored: Stored, values: Sequence[ir.Value | None]) -> None:
    """Put the operator with a quantized matrix in the place of a product."""
    old = product.node
    inputs = [old.inputs[0], *values]
    inputs[-1] = product.bias
    while inputs[-1] is None:
        inputs.pop()
    new = ir.node(stored.op_type, inputs, dict(stored.attributes), domain=DOMAIN, name=old.name)
    new.outputs[0].shape, new.outputs[0].type = old.outputs[0].shape, old.outputs[0].type
    name = old.outputs[0].name
    assert old.graph is not None
    ir.convenience.replace_nodes_and_values(old.graph, old, [old], [new], [old.outputs[0]], [new.outputs[0]])
    new.outputs[0].name = name


def _sweep(graph: ir.Graph) -> None:
    """Take out what nothing reads any more."""
    for node in [node for node in graph if node.op_type == "Transpose" and not node.outputs[0].uses()]:
        graph.remove(node, safe=True)
    outputs = set(graph.outputs)
    for name in [n for n, value in graph.initializers.items() if not value.uses() and value not in outputs]:
        del graph.initializers[name]
