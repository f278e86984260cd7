"""Which layers of a model differ, as the fields of its `config.json` choose them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, groupby, islice

from ..registry.configured import FieldSettings
from ..registry.marks import Node, nearest, node_of, shown

Note = Callable[[Node, str], None]


class Layers:
    """Gather, field by field, what the layers of one file change in the family's `layer`.

    `kinds`: the pieces that layers may be of, by name. `depth`: the field that says how many there are. `note`: takes
    what is wrong with a field. A layer that several fields choose is of all their pieces; of two that set one part, the
    part of the later counts.
    """

    def __init__(self, kinds: Mapping[str, Node], depth: str | None, note: Note) -> None:
        self.kinds = dict(kinds)
        self.depth = depth
        self.note = note
        self.chosen: list[list[str | None]] = []

    def set(self, path: str, value: Node) -> None:
        """Set an option, at a dotted path that begins with the name of a kind."""
        kind, _, rest = path.partition(".")
        self.kinds[kind] = _with(self.kinds[kind], rest.split("."), value)

    def choose(self, name: str, reading: FieldSettings, node: Node, count: object, given: bool) -> None:
        """Choose layers by one field; `count`: how many layers there are, `given`: whether the file has the field."""
        if reading.per_layer is not None:
            self._per_layer(name, reading.per_layer, node, count)
        elif reading.each:
            self._each(name, reading, node, count, given)
        elif type(count) is int and count > 0:  # else it is noted where the number of layers is read
            chosen: list[str | None] = [reading.others] * count
            kind, places = self._places(reading, node, count)
            for place in places:
                chosen[place] = kind
            self.chosen.append(chosen)

    def groups(self) -> Node | None:
        """Return the groups of layers that a spec lists; None where no field chose any."""
        if not self.chosen:
            return None
        keys = list(zip(*self.chosen, strict=True))
        mark = next(iter(self.kinds.values())).mark
        pieces = {key: self._piece(key) for key in keys}
        groups = []
        for start, size, times in _groups(keys):
            pattern = tuple(pieces[key] for key in keys[start : start + size])
            group = {"repeat": node_of(times, mark), "pattern": node_of(pattern, mark)}
            groups.append(node_of(group, mark))
        return node_of(tuple(groups), mark)

    def _piece(self, key: Sequence[str | None]) -> Node:
        kinds = [self.kinds[kind] for kind in key if kind is not None]
        if not kinds:
            return node_of({}, next(iter(self.kinds.values())).mark)
        parts = {part: child for kind in kinds for part, child in kind.items.items()}
        return node_of(parts, kinds[-1].mark, {part: mark for kind in kinds for part, mark in kind.keys.items()})

    def _per_layer(self, name: str, path: str, node: Node, count: object) -> None:
        """Give each layer its item of a list."""
        items = node.value if isinstance(node.value, tuple) else ()
        if type(count) is int and count != len(items):
            self.note(node, f"should be a list of {count}, one for each layer, not of {len(items)}")
            return
        for item in items:
            self.kinds[f"{name}={text_of(item)}"] = _with(node_of({}, item.mark), path.split("."), item)
        self.chosen.append([f"{name}={text_of(item)}" for item in items])

    def _each(self, name: str, reading: FieldSettings, node: Node, count: object, given: bool) -> None:
        """Choose every layer by an item of a list."""
        items = list(_in_turn(node.value)) if isinstance(node.value, tuple) else []
        texts = [text_of(item) for item in items]
        count = count if type(count) is int else len(texts)
        if odd := [item for item, text in zip(items, texts, strict=True) if text not in reading.each]:
            near = nearest(text_of(odd[0]), reading.each)
            self.note(odd[0], f"{shown(odd[0].plain())} is not known to the family{near}")
            return
        if texts and (reading.again or not given):
            texts = list(islice(cycle(texts), max(count, 0)))
        if not texts or count != len(texts):
            self.note(node, f"should be a list of {count}, as {self.depth} says, not of {len(texts)}")
            return
        for text, piece in reading.each.items():
            if isinstance(piece.value, dict):
                self.kinds[f"{name}={text}"] = piece
        named = {text: piece.value for text, piece in reading.each.items()}
        self.chosen.append([kind if isinstance(kind := named[text], str) else f"{name}={text}" for text in texts])

    def _places(self, reading: FieldSettings, node: Node, count: int) -> tuple[str | None, Sequence[int]]:
        """Return the kind that a field gives some layers, and which, from 0."""
        number = node.value if type(node.value) is int else -1
        if reading.listed is not None:
            items = node.value if isinstance(node.value, tuple) else (node,)
            if odd := [item for item in items if type(item.value) is not int or not 0 <= item.value < count]:
                self.note(odd[0], f"{shown(odd[0].plain())} is no layer; there are {count}, from 0 on")
                return None, ()
            return reading.listed, [int(str(item.value)) for item in items]
        least = 0 if reading.first is not None else 1
        if number < least:
            self.note(node, f"should be a whole number, {least} or more, not {shown(node.plain())}")
            return None, ()
        if reading.first is not None:
            return reading.first, range(min(number, count))
        return reading.every, range(0 if reading.leads else number - 1, count, number)


def text_of(node: Node) -> str:
    """Return a value as the keys of `values`, `cases` and `each` spell it: texts plain, the rest as JSON does."""
    return node.value if isinstance(node.value, str) else json.dumps(node.plain())


def _in_turn(items: Sequence[Node]) -> Iterator[Node]:
    """Yield an item a layer: those of a group, `[items, times]`, as often as it says."""
    for item in items:
        group = item.value if isinstance(item.value, tuple) else ()
        if len(group) == 2 and isinstance(group[0].value, tuple) and type(group[1].value) is int:
            yield from group[0].value * group[1].value
        else:
            yield item


def _with(node: Node, keys: Sequence[str], value: Node) -> Node:
    """Return a map with the value at a path of keys set."""
    first, *rest = keys
    inner = _with(node.items.get(first) or node_of({}, value.mark), rest, value) if rest else value
    return node_of(node.items | {first: inner}, node.mark, {**node.keys, first: inner.mark})


def _groups(keys: Sequence[object]) -> Iterator[tuple[int, int, int]]:
    """Cut layers into groups that repeat: (start, size, times) of each.

    They are a pattern that comes again and again and what is left of it, or else runs of equal layers.
    """
    total = len(keys)
    size = next(size for size in range(1, total + 1) if list(keys) == list(islice(cycle(keys[:size]), total)))
    runs = [len(list(run)) for _, run in groupby(keys)]
    if size + total % size <= len(runs):
        times, rest = divmod(total, size)
        yield 0, size, times
        if rest:
            yield times * size, rest, 1
        return
    start = 0
    for length in runs:
        yield start, 1, length
        start += length
