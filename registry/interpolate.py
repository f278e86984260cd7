"""Resolves `${a.b}` inside a spec: references to its own values, each resolved once, and nothing else."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from .marks import BROKEN, Mark, Node, Problem, join, nearest, node_of, shown
from .read import MAX_DEPTH, MAX_NODES

MAX_REFERENCES = 500  # values that hold references, and the characters of all of them: what parsing may cost
MAX_PATTERNS = 20_000
MAX_TEXT = 64_000


class Reference(str):
    """Hold the dotted path that a `${...}` refers to."""


def is_reference(node: Node) -> bool:
    """Say whether a node is a text that refers to other values."""
    return isinstance(node.value, str) and "${" in node.value


def interpolate(root: Node, problems: list[Problem]) -> Node:
    """Return the spec with every `${a.b}` replaced; what can't be is noted in `problems` and left broken.

    A value that is one reference takes what it refers to, be it a map; references within a text become text.
    Only plain dotted paths are let through, by OmegaConf's own grammar: no resolver is ever called.
    """
    return _Interpolation(root, problems).result()


class _Interpolation:
    """Order the references by what they depend on and resolve them one by one."""

    def __init__(self, root: Node, problems: list[Problem]) -> None:
        self.root = root
        self.problems = problems
        self.leaves: dict[str, Node] = {}
        self.under: dict[str, list[str]] = {}
        self.count = 0
        self.done: dict[str, Node] = {}
        self.collect(root, "", ())

    def collect(self, node: Node, path: str, above: tuple[str, ...]) -> None:
        self.count += 1
        if is_reference(node):
            self.leaves[path] = node
            for prefix in (*above, path):
                self.under.setdefault(prefix, []).append(path)
        for key, child in _children(node):
            self.collect(child, join(path, key), (*above, path))

    def result(self) -> Node:
        if self.count > MAX_NODES:
            self.note(self.root.mark, f"with all that it extends, the spec has more than {MAX_NODES:,} values")
        if not self.leaves:
            return self.root
        first = next(iter(self.leaves))
        size = sum(len(str(leaf.value)) for leaf in self.leaves.values())
        if len(self.leaves) > MAX_REFERENCES or size > MAX_PATTERNS:
            self.fail(first, f"more than {MAX_REFERENCES:,} values or {MAX_PATTERNS:,} characters with references")
            self.done = dict.fromkeys(self.leaves, self.done[first])
            return self.rebuilt(self.root, "")
        parts = self.parse_all()
        for path in self.ordered(parts):
            if path in parts and path not in self.done:
                self.done[path] = self.resolve(self.leaves[path], parts[path])
        return self.rebuilt(self.root, "")

    def parse_all(self) -> dict[str, list[str]]:
        from .references import parts_of  # OmegaConf takes as long to import as all else here, and most have none

        parts: dict[str, list[str]] = {}
        for path, leaf in self.leaves.items():
            try:
                parts[path] = parts_of(str(leaf.value))
            except ValueError as error:
                self.fail(path, f"{shown(leaf.value)}: {error}")
        return parts

    def ordered(self, parts: dict[str, list[str]]) -> list[str]:
        """Return the leaves' paths, each after those that it needs; those in a circle are noted and left broken."""
        graph = {path: self.needs(found) for path, found in parts.items()}
        while True:
            try:
                return list(TopologicalSorter(graph).static_order())
            except CycleError as error:
                circle = error.args[1][1:]
                around = " -> ".join([*circle, circle[0]])[:500]
                for path in circle:
                    self.fail(path, f"a circle of references: {around}")
                    graph[path] = set()

    def needs(self, parts: list[str]) -> set[str]:
        needed: set[str] = set()
        for target in (part for part in parts if isinstance(part, Reference)):
            keys = target.split(".")
            needed.update(self.under.get(target, ()))
            needed.update(path for i in range(1, len(keys)) if (path := ".".join(keys[:i])) in self.leaves)
        return needed

    def resolve(self, leaf: Node, parts: list[str]) -> Node:
        broken = node_of(BROKEN, leaf.mark)
        values: list[Node] = []
        for part in parts:
            node = self.find(part, leaf.mark) if isinstance(part, Reference) else node_of(part, leaf.mark)
            if node is None or node.value is BROKEN:
                return broken
            values.append(node)
        if len(values) == 1:
            return self.whole(values[0], leaf)
        if any(isinstance(node.value, dict | tuple) for node in values):
            self.note(leaf.mark, f"{shown(leaf.value)}: a map or a list can't become part of a text")
            return broken
        text = "".join(node.value if isinstance(node.value, str) else shown(node.value) for node in values)
        if len(text) > MAX_TEXT or "${" in text:
            why = f"gives more than {MAX_TEXT:,} characters" if len(text) > MAX_TEXT else "gives a reference again"
            self.note(leaf.mark, f"{shown(leaf.value)}: {why}")
            return broken
        return node_of(text, leaf.mark)

    def whole(self, node: Node, leaf: Node) -> Node:
        """Return what a value that is one reference becomes, within the limits of a spec."""
        if not isinstance(node.value, dict | tuple):
            return node_of(node.value, leaf.mark)
        depth = leaf.mark.path.count(".") + 1
        self.count += _size(node, MAX_NODES - self.count)
        if self.count > MAX_NODES or depth + node.height > MAX_DEPTH:
            self.note(leaf.mark, f"{shown(leaf.value)}: the spec grows over {MAX_NODES:,} values or {MAX_DEPTH} levels")
            return node_of(BROKEN, leaf.mark)
        return Node(node.value, leaf.mark, node.keys, node.height)

    def find(self, target: str, mark: Mark) -> Node | None:
        node, path = self.root, ""
        for key in target.split("."):
            child = _child(node, key)
            if child is None:
                known = [name for name, _ in _children(node)]
                place = f"'{path}'" if path else "the spec"
                self.note(mark, f"${{{target[:100]}}}: {place} has no '{key[:100]}'{nearest(key, known)}")
                return None
            path = join(path, key)
            node = self.done.get(path, child)
            if node.value is BROKEN:
                return node
        return self.rebuilt(node, path)

    def rebuilt(self, node: Node, path: str) -> Node:
        """Return a node with the references in it replaced, once all of them are done."""
        if path not in self.done and path in self.under:
            children = [(key, self.rebuilt(child, join(path, key))) for key, child in _children(node)]
            value = dict(children) if isinstance(node.value, dict) else tuple(child for _, child in children)
            self.done[path] = node_of(value, node.mark, node.keys)
        return self.done.get(path, node)

    def fail(self, path: str, message: str) -> None:
        self.note(self.leaves[path].mark, message)
        self.done[path] = node_of(BROKEN, self.leaves[path].mark)

    def note(self, mark: Mark, message: str) -> None:
        self.problems.append(Problem(mark, message))


def _children(node: Node) -> list[tuple[str, Node]]:
    if isinstance(node.value, tuple):
        return [(str(index), child) for index, child in enumerate(node.value)]
    return list(node.items.items())


def _child(node: Node, key: str) -> Node | None:
    if isinstance(node.value, tuple):
        return node.value[int(key)] if key.isdecimal() and len(key) < 6 and int(key) < len(node.value) else None
    return node.items.get(key)


def _size(node: Node, most: int) -> int:
    """Count the values in a node, giving up above `most`."""
    count = 1
    for _, child in _children(node) if count <= most else ():
        count += _size(child, most - count)
        if count > most:
            break
    return count
