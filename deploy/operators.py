"""Make a traced program of operators that torch's translator knows, node by node, instead of tracing it again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial, reduce
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import torch
from torch import SymInt, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

aten = torch.ops.aten
Target = Any
Length: TypeAlias = int | fx.Node
# Of operators that torch has as others, those that the translator takes as they are.
TAKEN: frozenset[Target] = frozenset({
    aten.chunk.default, aten.conv1d.default, aten.conv2d.default, aten.einsum.default, aten.expand_as.default,
    aten.flatten.using_ints, aten.layer_norm.default, aten.linear.default, aten.log_sigmoid.default,
    aten.matmul.default, aten.pad.default, aten.repeat_interleave.self_int, aten.reshape.default,
    aten.rms_norm.default, aten.scaled_dot_product_attention.default, aten.softmax.int, aten.sym_size.int,
    aten.unflatten.int, aten.where.ScalarSelf,
})  # fmt: skip
# What only checks; the translator leaves these out itself.
CHECKS: frozenset[Target] = frozenset({aten._assert_tensor_metadata.default, aten._assert_scalar.default})


def shorten(program: ExportedProgram) -> None:
    """Have a program decomposed node by node when the translator asks for that, if it is of what has a rule here.

    Torch's own way is to trace the whole program again, which takes twice as long as the first time. It is still
    taken for a program with an operator that neither the translator nor a rule knows.
    """
    whole = program.run_decompositions

    def run_decompositions(table: Mapping[Target, Any] | None = None, **more: Any) -> ExportedProgram:
        return program if table is not None and _known(program, table) else whole(table, **more)

    program.run_decompositions = run_decompositions


def _known(program: ExportedProgram, others: Container[Target]) -> bool:
    """Apply the rules, which change nothing of what a program computes, and say whether the translator knows it all.

    `others`: operators that the translator does not know, and torch has a decomposition for.
    """
    sizes = _Sizes(program)
    with program.graph_module._set_replace_hook(program.graph_signature.get_replace_hook()):
        for module in _modules(program):
            for node in list(module.graph.nodes):
                rule = RULES.get(node.target) if node.op == "call_function" else None
                sizes.see(node)
                if rule is not None:
                    rule(node, sizes)
            module.graph.eliminate_dead_code()
            module.recompile()
    calls = [node for module in _modules(program) for node in _calls(module)]
    taken = all(_taken(node.target, others) for node in calls)
    for node in calls if taken else ():
        if node.target is aten.reshape.default:
            _view(node)
    return taken


def _modules(program: ExportedProgram) -> Iterator[fx.GraphModule]:
    """Yield a program's graph, and those of what it repeats."""
    return (module for module in program.graph_module.modules() if isinstance(module, fx.GraphModule))


def _calls(module: fx.GraphModule) -> Iterator[fx.Node]:
    return (node for node in module.graph.nodes if node.op == "call_function")


def _taken(target: Target, others: Container[Target]) -> bool:
    """Say whether the translator takes an operator, and nothing is written where its input stands."""
    if not isinstance(target, torch._ops.OpOverload):
        return True  # arithmetic of lengths, and loops, whose bodies are looked at themselves
    if target in others or target._schema.is_mutable:
        return False
    composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return not composite or target in TAKEN or target in CHECKS


# -- rules ------------------------------------------------------------------------------------------------------------


class _Sizes:
    """Give lengths as nodes: those of an input are read off it, once, and others are what the program made of these."""

    def __init__(self, program: ExportedProgram) -> None:
        user = {s.arg.name for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT}
        self.graph = program.graph_module.graph
        self.first = next(node for node in self.graph.nodes if node.op != "placeholder")
        self.made: dict[Any, fx.Node] = {}
        self.given: dict[Any, tuple[fx.Node, int]] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name in user:
                for place, size in enumerate(node.meta["val"].shape):
                    if isinstance(size, SymInt):
                        self.given.setdefault(size.node.expr, (node, place))

    def see(self, node: fx.Node) -> None:
        """Keep a length that the program has made: the nodes after it can read it."""
        if isinstance(size := node.meta.get("val"), SymInt) and node.graph is self.graph:
            self.made.setdefault(size.node.expr, node)

    def __call__(self, shape: Sequence[int | SymInt], user: fx.Node) -> list[Length] | None:
        """Return a shape as numbers and nodes; None where a length is not known before `user`."""
        found = [size if isinstance(size, int) else self._node(size, user) for size in shape]
        return None if any(size is None for size in found) else found  # type: ignore[return-value]

    def _node(self, size: SymInt, user: fx.Node) -> Length | None:
        return self._of(size.node.expr, user) if user.graph is self.graph else None

    def _of(self, expr: Any, user: fx.Node) -> Length | None:
        if expr.is_Integer:
            return int(expr)
        if expr not in self.made:
            if expr in self.given:
                source, place = self.given[expr]
                with self.graph.inserting_before(self.first):
                    self.made[expr] = self.graph.call_function(aten.sym_size.int, (source, place))
                self.made[expr].meta["val"] = source.meta["val"].shape[place]
            elif expr.is_Add or expr.is_Mul:
                parts = [part for each in expr.args if (part := self._of(each, user)) is not None]
                if len(parts) == len(expr.args):
                    made = reduce(partial(_joined, operator.add if expr.is_Add else operator.mul, user), parts)
                    self.made[expr] = cast(fx.Node, made)
        return self.made.get(expr)


Rule = Callable[[fx.Node, _Sizes], None]


def _shaped(node: fx.Node, sizes: _Sizes) -> None:
    """Say the whole shape, where part of it was said."""
    shape = sizes(node.meta["val"].shape, node)
    if shape is not None:
        node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], shape), {}


def _view(node: fx.Node) -> None:
    """Make a view of a reshape, whose zeros the translator takes for lengths of the input. The translator runs it: what
    lies apart in memory is copied before.
    """
    source, shape = cast(tuple[fx.Node, list[Length]], node.args)
    try:
        aten.view.default(source.meta["val"], [_value(length) for length in shape])
    except (RuntimeError, ValueError):
        with node.graph.inserting_before(node):
            copied = node.graph.call_function(aten.clone.default, (source,), {"memory_format": torch.contiguous_format})
        copied.meta = node.meta | {"val": source.meta["val"].contiguous()}
        node.args = (copied, shape)
    node.target = aten.view.default


def _expanded(node: fx.Node, sizes: _Sizes) -> None:
    shape = sizes(node.meta["val"].shape, node)
    if shape is not None:
        node.target, node.args, node.kwargs = aten.expand.default, (node.args[0], shape), {}


def _split(node: fx.Node, sizes: _Sizes) -> None:
    """Say how long the pieces are, where it was said how many there are."""
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    pieces = [piece.shape[dim] for piece in node.meta["val"]]
    if all(isinstance(length, int) for length in pieces):
        node.target, node.args, node.kwargs = aten.split_with_sizes.default, (node.args[0], pieces, dim), {}


def _cast(node: fx.Node, sizes: _Sizes) -> None:
    """Leave out a cast to what a tensor is, and make any other the one that the translator knows."""
    source, dtype = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    if source.meta["val"].dtype == dtype and not _is_given(node):
        node.replace_all_uses_with(source)
    else:
        node.target, node.args, node.kwargs = aten._to_copy.default, (source,), {"dtype": dtype}


def _same(node: fx.Node, sizes: _Sizes) -> None:
    """Leave out what changes no number."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if not _is_given(node):
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)


def _undropped(node: fx.Node, sizes: _Sizes) -> None:
    """Leave out a dropout of what is not in training."""
    if not node.args[2]:
        _same(node, sizes)


def _turned(node: fx.Node, sizes: _Sizes) -> None:
    rank = node.meta["val"].dim()
    order = list(range(rank))[::-1] if node.target is aten.numpy_T.default else [*range(rank - 2), rank - 1, rank - 2]
    node.target, node.args = aten.permute.default, (node.args[0], order)


def _moved(node: fx.Node, sizes: _Sizes) -> None:
    source, start, end = cast(tuple[fx.Node, int, int], node.args)
    order = list(range(source.meta["val"].dim()))
    order.insert(end % len(order), order.pop(start))
    node.target, node.args = aten.permute.default, (source, order)


def _cut(node: fx.Node, sizes: _Sizes) -> None:
    """Say where a cut ends, where it was said how long it is; one that starts from the end is left alone."""
    source, dim, start, length = cast(tuple[fx.Node, int, Length, Length], node.args)
    end = sizes((_value(start) + _value(length),), node)
    if end is not None and not (isinstance(start, int) and start < 0):
        node.target, node.args = aten.slice.Tensor, (source, dim, start, *end)


def _joined(join: Callable[[Any, Any], Any], user: fx.Node, one: Length, other: Length) -> Length:
    """Return a sum or a product of two lengths, made before `user`."""
    if isinstance(one, int) and isinstance(other, int):
        return int(join(one, other))
    with user.graph.inserting_before(user):
        made = user.graph.call_function(join, (one, other))
    made.meta = user.meta | {"val": join(_value(one), _value(other))}
    return made


def _value(length: Length) -> Any:
    """Return a length as it was traced."""
    return length if isinstance(length, int) else length.meta["val"]


def _subtracted(node: fx.Node, sizes: _Sizes) -> None:
    if len(node.args) == 2 and not node.kwargs:
        negative = node.args[0]
        with node.graph.inserting_before(node):
            made = node.graph.call_function(aten.neg.default, (negative,))
        made.meta.update(node.meta)
        node.target, node.args = aten.add.Tensor, (made, node.args[1])


def _squared(node: fx.Node, sizes: _Sizes) -> None:
    node.target, node.args = aten.mul.Tensor, (node.args[0], node.args[0])


def _written(node: fx.Node, sizes: _Sizes) -> None:
    """Add beside what was to be added to, where nothing else reads that or shares its memory."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    fresh = isinstance(source.target, torch._ops.OpOverload) and not any(
        made.alias_info for made in source.target._schema.returns
    )
    if fresh and len(source.users) == 1:
        node.target = aten.add.Tensor


def _as(target: Target) -> Rule:
    """Return the rule that calls an operator by its other name."""

    def rule(node: fx.Node, sizes: _Sizes) -> None:
        node.target = target

    return rule


def _is_given(node: fx.Node) -> bool:
    """Say whether a node is among what the graph gives, where each has a name of its own."""
    return any(user.op == "output" for user in node.users)


RULES: Mapping[Target, Rule] = MappingProxyType({
    aten.flatten.using_ints: _shaped,
    aten.unflatten.int: _shaped,
    aten.reshape.default: _shaped,
    aten.view.default: _shaped,
    aten.expand_as.default: _expanded,
    aten.chunk.default: _split,
    aten.narrow.default: _cut,
    aten.to.dtype: _cast,
    aten.detach.default: _same,
    aten.dropout.default: _undropped,
    aten.detach_.default: _same,
    aten.numpy_T.default: _turned,
    aten.mT.default: _turned,
    aten.movedim.int: _moved,
    aten.rsub.Scalar: _subtracted,
    aten.square.default: _squared,
    aten.add_.Tensor: _written,
    aten.__and__.Tensor: _as(aten.bitwise_and.Tensor),
    aten.__or__.Tensor: _as(aten.bitwise_or.Tensor),
})  # fmt: skip
