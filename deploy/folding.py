"""Trace and translate layers that are alike once, and write the graph of one out for each of the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..core.block import Block
from ..core.component import Site
from ..core.context import Context
from ..core.stack import Stack
from ..core.state import Memories
from .alike import Placeless, alike

DOMAIN = "transom.layers"
# Nodes that stand in a graph until it is written out: where the first of alike layers begins and ends, and another one.
BEGIN, END, AGAIN = "Begin", "End", "Again"
States: TypeAlias = Mapping[str, Memories]
Layout: TypeAlias = Sequence[tuple[str, str]]


@contextmanager
def folded(function: nn.Module) -> Iterator[list[Fold]]:
    """Let the layers of all stacks that are alike be traced once: `unfold` writes them out in what comes of it."""
    names = {module: name for name, module in function.named_modules()}
    stacks = (module for module in list(names) if isinstance(module, Stack))
    groups = (group for stack in stacks for group in _groups(stack.blocks))
    folds = [Fold(number, group, [names[block] for block in group]) for number, group in enumerate(groups)]
    for fold in folds:
        fold.start()
    try:
        yield folds
    finally:
        for fold in folds:
            fold.stop()


def unfold(folds: Sequence[Fold], graph: ir.Graph) -> None:
    """Put into a graph, for each layer that was left out, the nodes of the one that it is like, with its weights."""
    marks = [node for node in graph if node.domain == DOMAIN]
    for fold in folds:
        fold.write_out(graph, [node for node in marks if node.attributes["number"].as_int() == fold.number])


def _groups(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Yield those of a stack's blocks that are alike, where there are two or more."""
    groups: list[list[Block]] = []
    if len(set(blocks)) < len(blocks):  # one that runs twice has no place of its own
        return
    for block in blocks:
        group = next((group for group in groups if alike(group[0], block)), None)
        if group is None:
            groups.append([block])
        else:
            group.append(block)
    yield from (group for group in groups if len(group) > 1)


@dataclass
class _Run:
    """What the first of alike layers was given and gave in the pass at hand."""

    given: Sequence[Tensor]
    layout: Layout
    contexts: Mapping[str, Context]
    gave: Sequence[Tensor]
    kept: Layout


class Fold:
    """Stand for alike layers: `blocks`, of which the first is traced; `paths` are their names in the function.

    `number`: what its marks are known by.
    """

    def __init__(self, number: int, blocks: Sequence[Block], paths: Sequence[str]) -> None:
        self.number = number
        self.blocks = blocks
        self.paths = paths
        self._run: _Run | None = None
        self._sites: list[tuple[Any, str, Site]] = []

    # -- tracing ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the place of the blocks' `forward`."""
        for module in self.blocks[0].modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, Site):
                    self._sites.append((module, name, value))
                    setattr(module, name, Placeless.of(value))
        for place, block in enumerate(self.blocks):
            block.forward = _Forward(self, place)  # type: ignore[method-assign]

    def stop(self) -> None:
        """Give it back."""
        for module, name, site in self._sites:
            setattr(module, name, site)
        for block in self.blocks:
            del block.forward
        self._run = None

    def run(
        self, place: int, x: Tensor, contexts: Mapping[str, Context], state: States | None
    ) -> tuple[Tensor, dict[str, Memories]]:
        """Run the first block, or let a mark stand for another one where it would do the same as the first did."""
        kept: Layout
        layout = [(sub, key) for sub, memories in (state or {}).items() for key in memories]
        given = [x, *((state or {})[sub][key] for sub, key in layout)]
        if place == 0:
            inside = _mark(BEGIN, given, {"number": self.number}, given)
            before = None if state is None else _unflat(layout, inside[1:])
            x, after = type(self.blocks[0]).forward(self.blocks[0], inside[0], contexts, before)
            kept = [(sub, key) for sub, memories in after.items() for key in memories]
            found = [x, *(after[sub][key] for sub, key in kept)]
            self._run = _Run(given, layout, contexts, found, kept)
            gave = _mark(END, found, {"number": self.number}, found)
        elif (run := self._run) is not None and self._does_the_same(run, place, given, layout, contexts):
            kept = run.kept
            gave = _mark(AGAIN, given, {"number": self.number, "place": place}, run.gave)
        else:
            return type(self.blocks[place]).forward(self.blocks[place], x, contexts, state)
        return gave[0], _unflat(kept, gave[1:])

    def _does_the_same(
        self, run: _Run, place: int, given: Sequence[Tensor], layout: Layout, contexts: Mapping[str, Context]
    ) -> bool:
        if any(getattr(module, name).asked for module, name, _ in self._sites):
            return False  # what the first did depends on its place
        return (
            list(run.layout) == list(layout)
            and all(a.dtype == b.dtype and _same_shape(a, b) for a, b in zip(run.given, given, strict=True))
            and all(_same(run.contexts[name], contexts[name], self.blocks, place) for name in self.blocks[0].names)
        )

    # -- writing out --------------------------------------------------------------------------------------------------

    def write_out(self, graph: ir.Graph, marks: Sequence[ir.Node]) -> None:
        """Put the other layers in the places of their marks, and take all marks out."""
        if not marks:  # of a stack that this graph does not run
            return
        first, last = (next(node for node in marks if node.op_type == kind) for kind in (BEGIN, END))
        held = {_key(raw): value for value in graph.initializers.values() if (raw := _weight_of(value)) is not None}
        own = {held[_key(tensor)]: name for name, tensor in _tensors(self.blocks[0]).items() if _key(tensor) in held}
        assert all(
            value in own
            for name in _tensors(self.blocks[0])
            if (value := graph.initializers.get(f"{self.paths[0]}.{name}"))
        ), "torch holds a weight elsewhere"
        body = _between(graph, first, last, own)
        for node in (node for node in marks if node.op_type == AGAIN):
            place = node.attributes["place"].as_int()
            tensors = _tensors(self.blocks[place])
            made: dict[ir.Value, ir.Value | None] = dict(zip(first.outputs, node.inputs, strict=True))
            for value, name in own.items():
                made[value] = self._weight(graph, held, value, tensors[name], place)
            for each in body:
                graph.insert_before(node, self._copy(each, made, place))
            _replace(graph, node, [_made(made, value) for value in last.inputs])
        for mark in (last, first):
            _replace(graph, mark, list(mark.inputs))

    def _weight(
        self, graph: ir.Graph, held: dict[Any, ir.Value], like: ir.Value, tensor: Tensor, place: int
    ) -> ir.Value:
        """Return the value of a weight of a layer: that of the whole graph which is the same tensor, or a new one."""
        if (key := _key(tensor)) not in held:
            name = self._renamed(str(like.name), place)
            weight = ir.tensor(tensor.detach(), name=name)
            held[key] = ir.Value(name=name, type=like.type, shape=like.shape, const_value=weight)
            graph.register_initializer(held[key])
        return held[key]

    def _copy(self, node: ir.Node, made: dict[ir.Value, ir.Value | None], place: int) -> ir.Node:
        """Return a node that does for a layer what `node` does for the first, and say what it makes."""
        copy = ir.Node(
            node.domain,
            node.op_type,
            [_made(made, value) for value in node.inputs],
            [_copied(attr, made) for attr in node.attributes.values()],
            overload=node.overload,
            num_outputs=len(node.outputs),
            version=node.version,
            metadata_props={key: self._renamed(said, place) for key, said in node.metadata_props.items()},
        )
        for value, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type = f"{value.name}.{place}", value.type
            new.shape = None if value.shape is None else value.shape.copy()
            made[value] = new
        return copy

    def _renamed(self, said: str, place: int) -> str:
        return re.sub(rf"\b{re.escape(self.paths[0])}(?![\w])", self.paths[place], said)


class _Forward:
    """Be the `forward` of one of alike blocks."""

    def __init__(self, fold: Fold, place: int) -> None:
        self.fold = fold
        self.place = place

    def __call__(
        self, x: Tensor, contexts: Mapping[str, Context], state: States | None = None
    ) -> tuple[Tensor, dict[str, Memories]]:
        return self.fold.run(self.place, x, contexts, state)


def _mark(kind: str, given: Sequence[Tensor], said: dict[str, Any], gives: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return what stands for the tensors that a mark gives, like those of `gives`."""
    return torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{kind}", given, said, dtypes=[t.dtype for t in gives], shapes=[t.shape for t in gives], version=1
    )


def _unflat(layout: Layout, tensors: Sequence[Tensor]) -> dict[str, Memories]:
    state: dict[str, dict[str, Tensor]] = {}
    for (sub, key), tensor in zip(layout, tensors, strict=True):
        state.setdefault(sub, {})[key] = tensor
    return dict(state)


def _same_shape(one: Tensor, other: Tensor) -> bool:
    """Compare lengths as they are written: to ask whether two symbols are equal would make it a condition."""
    return [str(size) for size in one.shape] == [str(size) for size in other.shape]


def _same(one: Context, other: Context, blocks: Sequence[Block], place: int) -> bool:
    """Say whether two layers are told the same; positions of their own are alike, as the layers are."""
    if one is other:
        return True
    own = (blocks[0].own_positions, blocks[place].own_positions)
    return all(
        getattr(one, field.name) is getattr(other, field.name)
        or (field.name == "positions" and (one.positions, other.positions) == own)
        for field in fields(Context)
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, those that are there twice by both names."""
    return dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])


def _key(tensor: Tensor) -> Any:
    """Tell tensors apart by where they lie: on the way through torch they become other objects."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype


def _weight_of(value: ir.Value) -> Tensor | None:
    raw = getattr(value.const_value, "raw", None)
    return raw if isinstance(raw, Tensor) else None


def _between(graph: ir.Graph, first: ir.Node, last: ir.Node, own: Mapping[ir.Value, str]) -> list[ir.Node]:
    """Return the nodes that make what `last` is given of what `first` gives and of a layer's own weights."""
    inside = {*first.outputs, *own}
    found: list[ir.Node] = []
    for node in graph:
        if node is last:
            break
        if node is not first and not inside.isdisjoint(_reads(node)):
            found.append(node)
            inside.update(node.outputs)
    wanted = set(last.inputs)
    body: list[ir.Node] = []
    for node in reversed(found):
        if not wanted.isdisjoint(node.outputs):
            body.append(node)
            wanted.update(_reads(node))
    return body[::-1]


def _reads(node: ir.Node) -> set[ir.Value | None]:
    """Return what a node is given, and what the graphs in it take from around them."""
    inner = [each for attr in node.attributes.values() for graph in _graphs(attr) for each in _all(graph)]
    return {value for each in (node, *inner) for value in each.inputs}


def _graphs(attr: ir.Attr) -> Sequence[ir.Graph]:
    if attr.type == ir.AttributeType.GRAPH:
        return [attr.as_graph()]
    return attr.as_graphs() if attr.type == ir.AttributeType.GRAPHS else []


def _all(graph: ir.Graph) -> Iterator[ir.Node]:
    return iter(ir.traversal.RecursiveGraphIterator(graph))


def _copied(attr: ir.Attr, made: Mapping[ir.Value, ir.Value | None]) -> ir.Attr:
    """Return an attribute for a copied node: graphs in it take what was made for the copy."""
    copies = [graph.clone(allow_outer_scope_values=True) for graph in _graphs(attr)]
    for node in (node for graph in copies for node in _all(graph)):
        for index, value in enumerate(node.inputs):
            if value in made:
                node.replace_input_with(index, _made(made, value))
    if not copies:
        return attr
    return ir.Attr(attr.name, attr.type, copies[0] if attr.type == ir.AttributeType.GRAPH else copies)


def _made(made: Mapping[ir.Value, ir.Value | None], value: ir.Value | None) -> ir.Value | None:
    return value if value is None else made.get(value, value)


def _replace(graph: ir.Graph, mark: ir.Node, values: Sequence[ir.Value | None]) -> None:
    """Take a mark out of a graph: `values` are what it stood for."""
    for old, new in zip(mark.outputs, values, strict=True):
        assert new is not None
        if old.is_graph_output():
            if new.producer() is None or new.is_graph_output():
                same = ir.node("Identity", [new])
                graph.insert_before(mark, same)
                new = same.outputs[0]
                new.type, new.shape = old.type, old.shape
            new.name, old.name = old.name, None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(mark, safe=True)
