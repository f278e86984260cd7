"""Where each value of a spec was written, and the located errors that say so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..errors import SpecError

SHOWN_PROBLEMS = 50
MOST_PROBLEMS = 500
MOST_CHOICES = 100  # that a suggestion is looked for in: what it may cost


@dataclass(frozen=True, slots=True)
class Mark:
    """Point at a place in a source: a file, a text or an override (`line` 0: the source has no lines).

    `path`: the dotted path of the value in that source.
    """

    source: str
    line: int = 0
    column: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source

    def below(self, key: str | int) -> Mark:
        """Return this place with the path of one of its keys or items."""
        return Mark(self.source, self.line, self.column, join(self.path, key))


class Broken:
    """Stand for a value that could not be read: its problem has been noted, so nobody notes it again."""


BROKEN = Broken()
Value: TypeAlias = "bool | int | float | str | tuple[Node, ...] | dict[str, Node] | Broken | None"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """Hold one value of a spec with its place; lists are tuples of nodes, maps are dicts of nodes.

    `keys`: the place of each key of a map. `height`: how many levels deep the value is nested.
    """

    value: Value
    mark: Mark
    keys: Mapping[str, Mark] = field(default_factory=dict)
    height: int = 1

    @property
    def items(self) -> dict[str, Node]:
        """The node's entries where it is a map; nothing where it is not."""
        return self.value if isinstance(self.value, dict) else {}

    def place(self, key: str) -> Mark:
        """Return where a key stands, or the map itself where it does not have that key."""
        return self.keys.get(key) or self.mark.below(key)

    def plain(self) -> Any:
        """Return the value as plain dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, tuple):
            return [child.plain() for child in self.value]
        return self.value


def node_of(value: Value, mark: Mark, keys: Mapping[str, Mark] | None = None) -> Node:
    """Make a node, measuring how deep it is."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return Node(value, mark, keys or {}, 1 + max((child.height for child in children), default=0))


def piece_at(path: str, value: Node) -> Node:
    """Return a piece of a spec that says one thing: the value at a dotted path."""
    for key in reversed(path.split(".")):
        value = node_of({key: value}, value.mark, {key: value.mark})
    return value


@dataclass(frozen=True)
class Problem:
    """Say what is wrong with a spec, and where."""

    mark: Mark
    message: str

    @property
    def path(self) -> str:
        """The dotted path of the value that is wrong."""
        return self.mark.path

    def __str__(self) -> str:
        line = f"{self.mark}: {self.path}: {self.message}" if self.path else f"{self.mark}: {self.message}"
        # One line, and nothing in it that a terminal obeys, whatever the file holds.
        return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


class BrokenSpec(SpecError):
    """Report everything that is wrong with a spec at once; `errors` holds the problems one by one."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.errors = tuple(sorted(dict.fromkeys(problems), key=_order))
        lines = [str(problem) for problem in self.errors[:SHOWN_PROBLEMS]]
        if len(self.errors) > SHOWN_PROBLEMS:
            lines.append(f"... and {len(self.errors) - SHOWN_PROBLEMS} more")
        super().__init__("\n".join(lines))


class Problems(list[Problem]):
    """Collect problems; there are only so many that it is worth to go on looking for."""

    def append(self, problem: Problem) -> None:
        """Add a problem. Raise `BrokenSpec` with all of them when there are too many."""
        super().append(problem)
        if len(self) >= MOST_PROBLEMS:
            raise BrokenSpec(self)


def _order(problem: Problem) -> tuple[bool, int, str, int, int]:
    """Order files by name and line, then what has no lines, overrides by number."""
    mark = problem.mark
    return mark.line == 0, 0 if mark.line else len(mark.source), mark.source, mark.line, mark.column


def join(path: str, key: str | int) -> str:
    """Return the dotted path of a key or an item below a path."""
    return f"{path}.{key}" if path else str(key)


def shown(value: object) -> str:
    """Return a value as an error message shows it: short, and on one line."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return the end of an error message: the choice that was probably meant, or else what is allowed."""
    allowed = sorted(set(choices))[:MOST_CHOICES]
    close = difflib.get_close_matches(word[:100], allowed, n=1)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (allowed: {', '.join(allowed)})" if allowed else ""
