"""Turns a spec as it is written into its typed layout, and back: stacks inherit, groups of layers repeat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import PluginError
from .forms import Reading
from .manager import Registry
from .marks import BROKEN, Node, Value, nearest, node_of
from .parts import NONE, PartForm, as_map
from .records import record_of
from .typed import Content, LayerSpec, StackSpec
from .written import ONLY_HEAD, Group, HeadForm, Written, WrittenModel, WrittenStack, is_named, spec_form

MAX_LAYERS = 10_000
_STACK_KEYS = [item.name for item in dataclasses.fields(WrittenStack)]


@dataclass(frozen=True)
class Shape:
    """Tell how one group was written: `repeat` times `size` layers, which had a pattern or not."""

    repeat: int
    size: int
    pattern: bool


@dataclass
class Expanded:
    """Hold a spec in the layout of `Content`, and how the layers of each stack were grouped."""

    node: Node
    shapes: dict[str, list[Shape]] = field(default_factory=dict)


def expand(root: Node, name: str, reading: Reading) -> Expanded:
    """Write every layer of a merged and resolved spec out; `name` is for a spec that has none."""
    expanded = Expanded(root)
    defaults: dict[str, Value] = {"name": name, "objective": NONE, "data": NONE, "train": {}, "export": {}, "hf": None}
    entries = {key: node_of(value, root.mark.below(key)) for key, value in defaults.items()}
    entries.update({key: child for key, child in root.items.items() if key in entries})
    if "model" in root.items:
        entries["model"] = _model(root.items["model"], expanded, reading)
    expanded.node = node_of(entries, root.mark, root.keys)
    return expanded


def unknown_keys(node: Node, known: Sequence[str] | Mapping[str, object], reading: Reading) -> None:
    """Note every key of a map that is not known there."""
    for key in node.items:
        if key not in known:
            reading.note(node.place(key), f"unknown option '{key[:100]}'{nearest(key, known)}")


def _model(model: Node, expanded: Expanded, reading: Reading) -> Node:
    if not isinstance(model.value, dict):
        return model
    entries: dict[str, Node] = {
        key: model.items[key] for key in ("topology", "d_model", "max_seq_len") if key in model.items
    }
    entries["heads"] = _heads(model, reading)
    entries["stacks"] = node_of(_stacks(model, expanded, reading), model.mark.below("stacks"))
    return node_of(entries, model.mark, model.keys)


def _heads(model: Node, reading: Reading) -> Node:
    head = model.items.get("head")
    if head is None:
        reading.note(model.mark.below("head"), f"is missing: it should be {HeadForm.wanted}")
        return node_of(BROKEN, model.mark)
    part = as_map(head)
    if part is None or part.items.get("kind", head).value == NONE:
        HeadForm().bind(head, reading)
        return node_of({} if part else BROKEN, head.mark)
    if not is_named(head):
        return node_of({ONLY_HEAD: head}, head.mark)
    there = {
        name: each for name, each in head.items.items() if (as_map(each) or each).items.get("kind", each).value != NONE
    }
    return node_of(there, head.mark, head.keys)


def _stacks(model: Node, expanded: Expanded, reading: Reading) -> dict[str, Node]:
    """Return the model's stacks: the only one's options stand in the model itself, several have a map each."""
    roles = _roles(model.items.get("topology"), reading)
    own = node_of({key: model.items[key] for key in _STACK_KEYS if key in model.items}, model.mark, model.keys)
    several = list(roles) if len(roles) > 1 else []
    if roles:
        unknown_keys(model, [*(item.name for item in dataclasses.fields(WrittenModel)), *several], reading)
    stacks: dict[str, Node] = {}
    merged: list[Node] = []
    form = record_of(WrittenStack)
    for name in roles or [""]:
        written = own
        if name in several and name in model.items:
            form.bind(model.items[name], dataclasses.replace(reading, partial=True))
            written = form.merge(own, model.items[name], reading)
        merged.append(written)
        stacks[name] = _stack(written, name, expanded, reading)
        if roles and roles[name].memory is None:
            _refuse_cross_attention(stacks[name], name, reading)
    _note_unused(own, merged, "is taken by no stack: each has its own", reading)
    return stacks


def _roles(topology: Node | None, reading: Reading) -> Mapping[str, Any]:
    """Return the stacks that a topology names; none where it is not known."""
    part = as_map(topology) if topology else None
    named = part.items.get("kind") if part else None
    cls = PartForm("topology").component(named, reading) if named else None
    if cls is None:
        return {}
    roles = getattr(cls, "stacks", None)
    if not isinstance(roles, Mapping) or not roles:
        raise PluginError(f"topology {cls.__qualname__} must name its stacks: stacks = {{'decoder': StackRole(...)}}")
    return roles


def _refuse_cross_attention(stack: Node, name: str, reading: Reading) -> None:
    layers = stack.items.get("layers")
    for layer in dict.fromkeys(layers.value if layers and isinstance(layers.value, tuple) else ()):
        cross = layer.items.get("cross_attention")
        if cross is not None and PartForm("attention", optional=True).bind(cross, reading) is not None:
            message = (
                f"stack '{name}' has no memory to attend to: leave cross_attention out, or choose a topology with one"
            )
            reading.note(layer.place("cross_attention"), message)


def _stack(stack: Node, name: str, expanded: Expanded, reading: Reading) -> Node:
    entries = {key: child for key, child in stack.items.items() if key not in ("layer", "first", "layers")}
    entries["layers"] = _layers(stack, expanded.shapes.setdefault(name, []), reading)
    return node_of(entries, stack.mark, stack.keys)


def _layers(stack: Node, shapes: list[Shape], reading: Reading) -> Node:
    """Return the list of a stack's layers, each complete; the layers of one pattern entry are one node."""
    layer = stack.items.get("layer") or node_of({}, stack.mark.below("layer"))
    groups = stack.items.get("layers")
    advice = "a list of groups, such as [{repeat: 6}]"
    if groups is None or not isinstance(groups.value, tuple) or not groups.value:
        mark = groups.mark if groups else stack.mark.below("layers")
        if groups is None or groups.value == ():
            reading.note(mark, f"{'is empty' if groups else 'is missing'}: write {advice}")
        return node_of(BROKEN, mark) if groups is None or groups.value == () else groups
    layers: list[Node] = []
    for group in groups.value:
        shape, pattern = _group(group, layer, reading)
        shapes.append(shape)
        if len(layers) + shape.repeat * len(pattern) > MAX_LAYERS:
            reading.note(group.mark, f"makes more than {MAX_LAYERS:,} layers")
            return node_of(BROKEN, groups.mark)
        layers += pattern * shape.repeat
    if layers and (first := _first(stack, layers[0])) is not None:
        layers[0] = record_of(LayerSpec).merge(layers[0], first, reading)
        shapes[:1] = _apart(shapes[0])
    _note_unused(layer, layers, "is taken by no layer: every pattern has its own", reading)
    return node_of(tuple(layers), groups.mark)


def _group(group: Node, layer: Node, reading: Reading) -> tuple[Shape, list[Node]]:
    """Return the layers of one pass through a group; what is wrong with it is noted, and the rest still read."""
    record_of(Group).bind(group, dataclasses.replace(reading, partial=True))
    repeat, pattern = group.items.get("repeat"), group.items.get("pattern")
    times = repeat.value if repeat and type(repeat.value) is int else 1
    assert isinstance(times, int)
    if repeat and times < 1:
        reading.note(repeat.mark, f"must be at least 1, not {times}")
    if pattern is None or not isinstance(pattern.value, tuple):
        return Shape(times, 1, False), [layer]
    if not pattern.value:
        reading.note(pattern.mark, "must hold at least one layer; leave it out to repeat `layer`")
    form = record_of(LayerSpec)
    entries = {id(entry): form.merge(layer, entry, reading) for entry in pattern.value}
    return Shape(times, len(pattern.value), True), [entries[id(entry)] for entry in pattern.value]


def _first(stack: Node, layer: Node) -> Node | None:
    """Return what the first layer of a stack changes in what it would be; None where that is nothing."""
    first = stack.items.get("first")
    if first is None or not isinstance(first.value, dict):
        return None
    # A part that is taken away where there is none would only tell the layer from its equals.
    changes = {key: item for key, item in first.items.items() if item.value != NONE or key in layer.items}
    return node_of(changes, first.mark, first.keys) if changes else None


def _apart(shape: Shape) -> list[Shape]:
    """Return a group as two, the first of which holds one pass alone, for its first layer is not as in the others."""
    rest = Shape(shape.repeat - 1, shape.size, True)
    return [Shape(1, shape.size, True), *([rest] if rest.repeat else [])]


def _note_unused(shared: Node, merged: Sequence[Node], why: str, reading: Reading) -> None:
    """Note what stands in a shared map and in none of those that it was merged into."""
    used = {id(leaf) for one in dict.fromkeys(merged) for leaf in _leaves(one)}
    for leaf in _leaves(shared):
        if id(leaf) not in used:
            reading.drop(leaf, why)


def _leaves(node: Node) -> list[Node]:
    if isinstance(node.value, dict):
        return [leaf for child in node.value.values() for leaf in _leaves(child)]
    return [node]


def written_out(content: Content, shapes: Mapping[str, list[Shape]], registry: Registry) -> dict[str, Any]:
    """Return plain data, in the layout that specs are written in, from which exactly this spec can be read again."""
    forms = spec_form().forms
    model = content.model
    stacks = {name: _plain_stack(stack, shapes[name], registry) for name, stack in model.stacks.items()}
    head = HeadForm().dump(model.heads, registry)
    topology = PartForm("topology").dump(model.topology, registry)
    sizes = {"topology": topology, "d_model": model.d_model, "max_seq_len": model.max_seq_len}
    inside = next(iter(stacks.values())) if len(stacks) == 1 else stacks
    plain = {item.name: getattr(content, item.name) for item in dataclasses.fields(Written) if item.name != "extends"}
    dumped = {
        name: forms[name].dump(value, registry)
        for name, value in plain.items()
        if name != "model" and not (name == "hf" and value is None)
    }
    dumped.get("hf", {}).pop("config", None)
    return {"name": dumped.pop("name"), "model": {**sizes, **inside, "head": head}, **dumped}


def _plain_stack(stack: StackSpec, shapes: Sequence[Shape], registry: Registry) -> dict[str, Any]:
    fields = record_of(StackSpec).forms
    plain = {name: fields[name].dump(getattr(stack, name), registry) for name in ("embedding", "position", "norm")}
    form, start, groups, shared = record_of(LayerSpec), 0, list[dict[str, Any]](), {}
    for shape in shapes:
        layers = [form.dump(layer, registry) for layer in stack.layers[start : start + shape.size]]
        start += shape.repeat * shape.size
        if any(one.pattern for one in shapes):
            groups.append({"repeat": shape.repeat, "pattern": layers})
        else:
            shared = {"layer": layers[0]}
            groups.append({"repeat": shape.repeat})
    return {
        "embedding": plain["embedding"],
        "position": plain["position"],
        **shared,
        "layers": groups,
        "norm": plain["norm"],
        **({"halve_every": stack.halve_every} if stack.halve_every > 0 else {}),
    }
