"""Find the stored matrices of a graph: what is multiplied with them, and what looks rows up in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ..errors import ExportError

SMALLEST = 4  # weights of a column below which codes with a scale take more room than the weights


@dataclass(frozen=True, eq=False)
class Matrix:
    """Describe the use of a stored matrix: `node`, the name of the module it is of, and what is stored.

    `turned`: whether the matrix is stored as (N, K) and taken as (K, N). `bias`: what a product adds. `looked_up`:
    whether the node looks up rows of what is stored, in place of a product.
    """

    node: ir.Node
    module: str
    stored: ir.Value
    turned: bool
    bias: ir.Value | None = None
    looked_up: bool = False

    @property
    def rows(self) -> int:
        """Return K, how many numbers are multiplied with a column."""
        return sizes_of(self.stored)[1 if self.turned else 0]

    def weight(self) -> Tensor:
        """Return the matrix (K, N), fp32."""
        assert self.stored.const_value is not None
        weight = torch.from_numpy(self.stored.const_value.numpy().astype(np.float32))
        return weight.T if self.turned else weight


def products(model: ir.Model) -> Iterator[Matrix]:
    """Yield the products of a graph and of those inside it whose second factor is a stored matrix."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        plain = node.op_type == "MatMul" or (node.op_type == "Gemm" and _is_plain(node))
        if node.domain or not plain:
            continue
        factor = node.inputs[1]
        assert factor is not None
        turn = factor.producer()
        turned = turn is not None and turn.op_type == "Transpose" and list(_attribute(turn, "perm", [])) == [1, 0]
        stored = turn.inputs[0] if turned and turn is not None else factor
        if _is_matrix(stored):
            transposed = node.op_type == "Gemm" and bool(_attribute(node, "transB", 0))
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            yield Matrix(node, module_of(node), stored, turned != transposed, bias)


def lookups(model: ir.Model) -> Iterator[Matrix]:
    """Yield what looks up rows of a stored matrix, in a graph and in those inside it."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Gather" and not node.domain and not _attribute(node, "axis", 0):
            stored = node.inputs[0]
            if _is_matrix(stored):
                yield Matrix(node, module_of(node), stored, turned=True, looked_up=True)


def _is_matrix(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Say whether a value is a stored matrix of numbers that is worth codes."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return False
    sizes = sizes_of(value)
    return len(sizes) == 2 and value.const_value.dtype.is_floating_point() and min(sizes) >= SMALLEST


def sizes_of(stored: ir.Value) -> tuple[int, ...]:
    """Return the sizes of what is stored."""
    assert stored.const_value is not None
    return tuple(stored.const_value.shape.numpy())


def module_of(node: ir.Node) -> str:
    """Return the name of the module that a node is of, as `layers` of `transom.json` names it."""
    return str(node.name).partition("/")[0]


def check_patterns(option: str, patterns: Sequence[str], modules: Sequence[str]) -> None:
    """Refuse a pattern of an option that matches none of the modules.

    Raises:
        ExportError: with the nearest module.
    """
    for pattern in patterns:
        if not any(matches(module, [pattern]) for module in modules):
            near = get_close_matches(pattern, modules, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise ExportError(f"export.quantize.{option}: {pattern}: no module with a matrix has such a name{hint}")


def matches(module: str, patterns: Sequence[str]) -> bool:
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
