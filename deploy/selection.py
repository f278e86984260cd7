"""A pass over a graph: where one token of each row is read in the end, choose it as early as can be."""

from __future__ import annotations

import onnx_ir as ir

# Operators that make each token of a (batch, sequence, width) from that token of their inputs alone: entry by entry,
# along the last dimension, or by one product with a matrix that all tokens share.
ENTRIES = {
    *("Abs", "Add", "And", "Cast", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu", "Greater"),
    *("HardSigmoid", "HardSwish", "Less", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal"),
    *("Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "Where"),
}
ALONG_LAST = {"RMSNormalization", "LayerNormalization", "Softmax", "LogSoftmax", "Split", "Concat"}
NORMS = {"SkipSimplifiedLayerNormalization", "SkipLayerNormalization"}


def choose_early(graph: ir.Graph) -> None:
    """Compute for the one token of each row that is read what would be computed for all of them.

    A last layer mixes tokens for all of its heads; what follows, its feedforward too, is then of one token.
    """
    waiting = [node for node in graph if _chooses_one(node)]
    while waiting:
        chosen = waiting.pop()
        source = chosen.inputs[0]
        assert source is not None
        before = source.producer()
        if before is not None and _chooses(before) and _read_by(before, {chosen}):
            waiting.append(_compose(graph, before, chosen))
        else:
            waiting += _pull(graph, chosen)
    graph.sort()


def _pull(graph: ir.Graph, chosen: ir.Node) -> list[ir.Node]:
    """Choose before all that is only read through one choice, and return the choices that there are then, if any."""
    source, index = chosen.inputs[0], _index(chosen)
    assert source is not None
    assert source.shape is not None
    assert index is not None
    length = source.shape[1]
    through: set[ir.Node] = set()
    found = [source.producer()]
    while found:  # a node may be met before the last of its readers, and is met again with each
        node = found.pop()
        if node is None or node in through or not _by_token(node, length) or not _read_by(node, {*through, chosen}):
            continue
        through.add(node)
        found += [value.producer() for value in node.inputs if value is not None]
    made: dict[ir.Value, ir.Value] = {}
    for node in through:
        for place, value in enumerate(node.inputs):
            if value is not None and _has(value, length) and value.producer() not in through:
                if value not in made:
                    made[value] = _choice(graph, value, index, chosen)
                node.replace_input_with(place, made[value])
    if not through:
        return []
    for node in through:
        for output in node.outputs:
            if output.shape is not None:
                output.shape = ir.Shape([output.shape[0], 1, *output.shape[2:]])
    chosen.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(chosen, safe=True)
    return [node for value in made.values() if (node := value.producer()) is not None and _chooses_one(node)]


def _compose(graph: ir.Graph, before: ir.Node, chosen: ir.Node) -> ir.Node:
    """Return one choice for two in a row."""
    source, first, second = before.inputs[0], _index(before), _index(chosen)
    assert source is not None
    assert first is not None
    assert second is not None
    made = _choice(graph, source, _choice(graph, first, second, chosen), chosen)
    chosen.outputs[0].replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove([chosen, before], safe=True)
    node = made.producer()
    assert node is not None
    return node


def _choice(graph: ir.Graph, value: ir.Value, index: ir.Value, where: ir.Node) -> ir.Value:
    """Return tokens `index` (batch, tokens, 1) of a value (batch, sequence, width)."""
    assert value.shape is not None
    assert index.shape is not None
    width, nodes, wide = value.shape[2], list[ir.Node](), index
    assert isinstance(width, int)
    if width != 1:
        sizes = ir.node("Shape", [index], {"start": 0, "end": 2})
        last = ir.node("Constant", [], {"value": ir.tensor([width])})
        shape = ir.node("Concat", [sizes.outputs[0], last.outputs[0]], {"axis": 0})
        expand = ir.node("Expand", [index, shape.outputs[0]])
        nodes, wide = [sizes, last, shape, expand], expand.outputs[0]
        wide.shape, wide.type = ir.Shape([*index.shape[:2], width]), index.type
    gather = ir.node("GatherElements", [value, wide], {"axis": 1})
    made = gather.outputs[0]
    made.shape, made.type = ir.Shape([*index.shape[:2], width]), value.type
    graph.insert_before(where, [*nodes, gather])
    return made


def _chooses(node: ir.Node) -> bool:
    """Say whether a node takes whole tokens from each row."""
    return (node.op_type, node.domain, node.attributes.get_int("axis", 0)) == ("GatherElements", "", 1) and bool(
        _index(node)
    )


def _chooses_one(node: ir.Node) -> bool:
    index = _index(node) if _chooses(node) else None
    return index is not None and index.shape is not None and index.shape[1] == 1


def _index(node: ir.Node) -> ir.Value | None:
    """Return which tokens of each row a GatherElements takes, (batch, tokens, 1); None where columns differ."""
    wide, source = node.inputs[1], node.inputs[0]
    if wide is None or wide.shape is None or len(wide.shape) != 3 or source is None or source.shape is None:
        return None
    if wide.shape[2] == 1:
        return wide if source.shape[2] == 1 else None
    expand = wide.producer()
    index = expand.inputs[0] if expand is not None and expand.op_type == "Expand" else None
    if index is None or index.shape is None or len(index.shape) != 3 or list(index.shape[1:]) != [wide.shape[1], 1]:
        return None
    return index


def _by_token(node: ir.Node, length: int | ir.SymbolicDim) -> bool:
    """Say whether a node makes each token of (batch, sequence, width) from that token of its inputs alone."""
    values = [value for value in node.inputs if value is not None]
    outputs = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    if not all(_has(value, length) for value in outputs):
        return False
    match node.domain, node.op_type:
        case "", kind if kind in ENTRIES:
            return all(_has(value, length) or _same_for_all(value) for value in values)
        case "", "Split" | "Concat":
            places = values if node.op_type == "Concat" else values[:1]
            last = node.attributes.get_int("axis", 0) in (-1, 2)
            return last and all(_has(value, length) for value in places)
        case "", kind if kind in ALONG_LAST:
            last = node.attributes.get_int("axis", -1) in (-1, 2)
            return last and _has(values[0], length) and all(_same_for_all(value) for value in values[1:])
        case "", "MatMul":
            matrix = values[1].shape
            return _has(values[0], length) and matrix is not None and len(matrix) == 2
        case "com.microsoft", kind if kind in NORMS:
            return all(_has(value, length) for value in values[:2])
    return False


def _has(value: ir.Value, length: int | ir.SymbolicDim) -> bool:
    """Say whether a value is of each row's own tokens, (batch, sequence, width)."""
    shape = value.shape
    if shape is None or len(shape) != 3 or isinstance(shape[0], int):
        return False
    return shape[1] == length and isinstance(shape[2], int)


def _same_for_all(value: ir.Value) -> bool:
    """Say whether a value is the same for all tokens of a row."""
    shape = value.shape
    return shape is not None and (len(shape) < 2 or shape[-2] == 1)


def _read_by(node: ir.Node, readers: set[ir.Node]) -> bool:
    """Say whether nothing else reads what a node makes."""
    return all(
        not output.is_graph_output() and all(use.node in readers for use in output.uses()) for output in node.outputs
    )
