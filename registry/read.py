"""Reads YAML text and plain dicts into nodes that know where they were written, within fixed limits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from yaml.reader import Reader

from .marks import BROKEN, BrokenSpec, Mark, Node, Problem, Value, join, node_of, shown

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 10_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_DISPUTED = re.compile(r"0o[0-7]+|[-+]?0[0-9]+")
_HUGE = re.compile(r"[-+]?[0-9]{19,}")
_TRAP_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "timestamp")}


def scalar(text: str) -> bool | int | float | str | None:
    """Return what an unquoted scalar means: YAML 1.2's core types in decimal, so that `1e-3` is a number."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) or _INFINITE.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1].isalpha() else text)
    return text


def trap(text: str) -> str | None:
    """Say what to write instead of an unquoted scalar that YAML readers disagree on (`yes`, `010`, `12:30:45`)."""
    if _HUGE.fullmatch(text):
        return f"a number of {len(text)} digits is too large; a text goes in quotes"
    if not isinstance(scalar(text), str) or len(text) > 100:
        return None
    rules = yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], [])
    if not _DISPUTED.fullmatch(text) and not any(tag in _TRAP_TAGS and rule.match(text) for tag, rule in rules):
        return None
    try:
        meant = yaml.safe_load(text)
    except ValueError:
        meant = text
    number = isinstance(meant, int | float) or bool(_DISPUTED.fullmatch(text))
    read_as = shown(meant) if isinstance(meant, int | float) else "a number" if number else "a date"
    plainly = f"{shown(meant)}, or " if isinstance(meant, bool) else "the plain number, or " if number else ""
    return f"{text} without quotes is {read_as} to some YAML readers: write {plainly}'{text}' in quotes"


def read_yaml(text: str, source: str, problems: list[Problem], *, path: str = "", lines: bool = True) -> Node:
    """Read one YAML document, whose place in a spec is `path`; `lines`: whether its places are told by line.

    Problems that leave the rest readable are added to `problems`. Raise `BrokenSpec` with all of them for one that
    does not: bad syntax, or a limit on size, depth or number of nodes.
    """
    start = Mark(source, int(lines), int(lines), path)
    if len(text) > MAX_BYTES:
        raise BrokenSpec([*problems, Problem(start, f"more than {MAX_BYTES:,} characters")])
    bad = Reader.NON_PRINTABLE.search(text)
    if bad:
        row, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        mark = Mark(source, row, column, path) if lines else start
        raise BrokenSpec([*problems, Problem(mark, f"the character U+{ord(bad[0]):04X} can't stand in YAML")])
    try:
        return _Composer(text, source, problems, path, lines).document()
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = Mark(source, at.line + 1, at.column + 1, path) if at and lines else start
        raise BrokenSpec([*problems, Problem(mark, f"not valid YAML: {_rule(error, text)}")]) from None


def _rule(error: yaml.MarkedYAMLError, text: str) -> str:
    """Say which rule of YAML is broken, quoting nothing longer than a sign: the file may be no spec at all."""
    rule = re.sub(r"'([^']*)'", lambda found: found[0] if len(found[1]) == 1 else "this", error.problem or "unreadable")
    at = error.problem_mark
    line = "".join(text.splitlines()[at.line : at.line + 1]) if at else ""
    return f'{rule}; within {{ }} and [ ] a reference needs quotes: "${{a.b}}"' if "${" in line else rule


def read_plain(value: object, source: str, problems: list[Problem]) -> Node:
    """Read plain dicts, lists and scalars, as a program would write them. Raise `BrokenSpec` at a limit."""
    return _Copier(source, problems).copy(value, "", 1)


class _Limits:
    """Count what is read, and stop at the limits."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        self.count = 0

    def note(self, mark: Mark, message: str) -> None:
        self.problems.append(Problem(mark, message))

    def stop(self, mark: Mark, message: str) -> BrokenSpec:
        return BrokenSpec([*self.problems, Problem(mark, message)])

    def enter(self, mark: Mark, depth: int, nodes: int = 1) -> None:
        self.count += nodes
        if depth > MAX_DEPTH:
            raise self.stop(mark, f"nested more than {MAX_DEPTH} levels deep")
        if self.count > MAX_NODES:
            raise self.stop(mark, f"more than {MAX_NODES:,} values, those that aliases repeat included")


class _Copier(_Limits):
    """Turn plain values into nodes."""

    def copy(self, value: object, path: str, depth: int) -> Node:
        mark = Mark(self.source, path=path)
        self.enter(mark, depth)
        if isinstance(value, Mapping):
            entries = {str(key): self.copy(child, join(path, str(key)), depth + 1) for key, child in value.items()}
            for key in value:
                if not isinstance(key, str):
                    self.note(mark, f"keys are texts, not {shown(key)}")
            return node_of(entries, mark)
        if isinstance(value, list | tuple):
            return node_of(tuple(self.copy(item, join(path, i), depth + 1) for i, item in enumerate(value)), mark)
        wrong = _wrong_scalar(value)
        if wrong:
            self.note(mark, wrong)
            return node_of(BROKEN, mark)
        assert value is None or isinstance(value, bool | int | float | str)
        return node_of(value, mark)


def _wrong_scalar(value: object) -> str | None:
    """Say why a plain value could not be written in a spec."""
    if isinstance(value, str) and Reader.NON_PRINTABLE.search(value):
        return f"{shown(value)} has characters that can't stand in YAML"
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"a number of {len(str(abs(value))) if abs(value) < 10**1000 else 'thousands of'} digits is too large"
    known = value is None or isinstance(value, bool | int | float | str)
    return None if known else f"a spec holds maps, lists, texts and numbers, not {type(value).__name__}"


class _Composer(_Limits):
    """Turn YAML events into nodes; the events come one by one, so a limit stops the work at once."""

    def __init__(self, text: str, source: str, problems: list[Problem], path: str, lines: bool) -> None:
        super().__init__(source, problems)
        self.path = path
        self.lines = lines
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self.anchors: dict[str, tuple[Node, int] | None] = {}

    def mark(self, event: Event, path: str) -> Mark:
        if not self.lines:
            return Mark(self.source, path=path)
        at = event.start_mark
        assert at is not None
        return Mark(self.source, at.line + 1, at.column + 1, path)

    def document(self) -> Node:
        next(self.events)
        if isinstance(next(self.events), StreamEndEvent):
            line = int(self.lines)
            raise self.stop(Mark(self.source, line, line, self.path), "there is nothing: a spec is a map with `model`")
        node = self.compose(next(self.events), self.path, 1)
        next(self.events)
        further = next(self.events)
        if isinstance(further, DocumentStartEvent):
            self.note(self.mark(further, ""), "a second document: a spec is one")
        return node

    def compose(self, event: Event, path: str, depth: int) -> Node:
        mark = self.mark(event, path)
        if isinstance(event, AliasEvent):
            return self.alias(str(event.anchor), mark, depth)
        anchor, before = getattr(event, "anchor", None), self.count
        self.enter(mark, depth)
        if anchor:
            self.anchors[anchor] = None
        if isinstance(event, MappingStartEvent):
            node = self.mapping(mark, depth)
        elif isinstance(event, SequenceStartEvent):
            node = self.sequence(mark, depth)
        else:
            assert isinstance(event, ScalarEvent)
            node = node_of(self.scalar(event, mark), mark)
        if getattr(event, "tag", None) is not None:
            self.note(mark, "tags such as !!python or !!str are refused: write the plain value")
            node = node_of(BROKEN, mark)
        if anchor:
            self.anchors[anchor] = (node, self.count - before)
        return node

    def alias(self, anchor: str, mark: Mark, depth: int) -> Node:
        if anchor not in self.anchors:
            raise self.stop(mark, "an alias to an anchor that does not exist")
        target = self.anchors[anchor]
        if target is None:
            raise self.stop(mark, "an alias to the value that it stands in")
        node, size = target
        self.enter(mark, depth + node.height - 1, size)
        return node

    def scalar(self, event: ScalarEvent, mark: Mark) -> Value:
        text: str = event.value
        if not event.implicit[0]:
            return text
        advice = "??? stands for a value: write one" if text == "???" else trap(text)
        if advice:
            self.note(mark, advice)
            return BROKEN
        return scalar(text)

    def sequence(self, mark: Mark, depth: int) -> Node:
        items: list[Node] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self.compose(event, join(mark.path, len(items)), depth + 1))
        return node_of(tuple(items), mark)

    def mapping(self, mark: Mark, depth: int) -> Node:
        entries: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        inherited: list[Node] = []
        while not isinstance(event := next(self.events), MappingEndEvent):
            name = self.key(event, mark, depth)
            place = self.mark(event, join(mark.path, name or "?"))
            child = self.compose(next(self.events), place.path, depth + 1)
            if name == "<<":
                inherited.append(child)
            elif name in entries:
                self.note(place, f"'{shown(name)[1:-1]}' is given twice; first in line {keys[name].line}")
            elif name is not None:
                entries[name], keys[name] = child, place
        for child in inherited:
            self.inherit(child, entries, keys)
        return node_of(entries, mark, keys)

    def key(self, event: Event, mark: Mark, depth: int) -> str | None:
        if not isinstance(event, ScalarEvent):
            place = self.mark(event, mark.path)
            self.compose(event, mark.path, depth + 1)
            self.note(place, "a key is a plain text")
            return None
        text: str = event.value
        self.enter(mark, depth, 0)
        if event.implicit[0] and (trap(text) or not isinstance(scalar(text), str)):
            self.note(self.mark(event, mark.path), trap(text) or f"a key is a text, not {shown(scalar(text))}")
            return None
        return text

    def inherit(self, child: Node, entries: dict[str, Node], keys: dict[str, Mark]) -> None:
        """Add what a merge key `<<` brings: what is written out wins, then the first of several maps."""
        for source in child.value if isinstance(child.value, tuple) else (child,):
            if not isinstance(source.value, dict):
                self.note(source.mark, "`<<` takes a map or a list of maps")
            for name, value in source.items.items():
                if name not in entries:
                    entries[name], keys[name] = value, source.place(name)
