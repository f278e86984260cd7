"""Passes over a graph that was translated: they know operators, and no component."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import optimizer

from .selection import choose_early

MICROSOFT = "com.microsoft"
# Entries that a tensor may have which a graph holds in place of what makes it (a table of positions, say).
FOLDED = 1 << 26


def tidied(model: ir.Model, target: str) -> None:
    """Make a graph, whose dimensions have their names, one of fewer and larger operators that gives the same.

    `target`: `onnx` keeps to the standard's operators, `ort` takes those of ONNX Runtime too.
    """
    optimizer.fold_constants(model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    _drop_reshapes(model.graph)
    if target == "ort" and _fuse_added_norms(model.graph):
        model.opset_imports[MICROSOFT] = 1
    choose_early(model.graph)
    optimizer.remove_unused_nodes(model)


def _drop_reshapes(graph: ir.Graph) -> None:
    """Read what a reshape was made of, where another one made that; and leave out one that changes nothing."""
    for node in graph:
        if node.op_type != "Reshape" or node.domain:
            continue
        source, made = node.inputs[0], node.outputs[0]
        assert source is not None
        before = source.producer()
        if before is not None and before.op_type == "Reshape" and not before.domain and _says_all(node):
            source = before.inputs[0]
            assert source is not None
            node.replace_input_with(0, source)
        if _same_shape(source, made) and not made.is_graph_output():
            made.replace_all_uses_with(source)


def _says_all(reshape: ir.Node) -> bool:
    """Say whether the shape that a reshape is given has no 0, which would stand for a size of its input."""
    if reshape.attributes.get_int("allowzero", 0):
        return True
    shape = reshape.inputs[1]
    return shape is not None and shape.const_value is not None and 0 not in shape.const_value.numpy()


def _fuse_added_norms(graph: ir.Graph) -> bool:
    """Make one operator of a sum and the norm that reads it; say whether there was one."""
    found = False
    for node in list(graph):
        if node.op_type not in _SKIPS or node.domain or node.attributes.get_int("axis", -1) != -1:
            continue
        total = node.inputs[0]
        add = None if total is None else total.producer()
        if total is None or add is None or (add.op_type, add.domain) != ("Add", "") or not _fits(add, total, node):
            continue
        # The sum is the fourth output; what stands for the mean and its inverse is not asked for.
        fused = ir.Node(
            MICROSOFT,
            _SKIPS[node.op_type],
            [*add.inputs, *node.inputs[1:]],
            [ir.AttrFloat32("epsilon", node.attributes.get_float("epsilon", 1e-5))],
            num_outputs=4,
        )
        for output, old in ((fused.outputs[0], node.outputs[0]), (fused.outputs[3], total)):
            output.name, output.shape, output.type = old.name, old.shape, old.type
        for output in fused.outputs[1:3]:
            output.name = ""
        graph.insert_before(add, fused)
        for output, old in ((fused.outputs[0], node.outputs[0]), (fused.outputs[3], total)):
            old.replace_all_uses_with(output)
        graph.remove([node, add], safe=True)
        found = True
    return found


_SKIPS = {"RMSNormalization": "SkipSimplifiedLayerNormalization", "LayerNormalization": "SkipLayerNormalization"}


def _fits(add: ir.Node, total: ir.Value, norm: ir.Node) -> bool:
    """Say whether a sum and its norm are of three dimensions that nothing widens, and neither leaves the graph."""
    made: Sequence[ir.Value] = (total, norm.outputs[0])
    scales = [value for value in norm.inputs[1:] if value is not None]
    return (
        total.shape is not None
        and len(total.shape) == 3
        and all(value is not None and _same_shape(value, total) for value in add.inputs)
        and all(value.shape is not None and len(value.shape) == 1 and value.is_initializer() for value in scales)
        and len(norm.inputs) == len(scales) + 1
        and not any(value.is_graph_output() for value in made)
    )


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Say whether two values are known to have one shape."""
    if one.shape is None or other.shape is None or one.dtype != other.dtype:
        return False
    known = all(isinstance(dim, int) or dim.value is not None for dim in one.shape)
    return known and list(one.shape) == list(other.shape)
