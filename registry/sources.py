"""Finds and reads the documents that a spec is made of: bundled specs, files, what they extend, and overrides."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from .interpolate import is_reference
from .marks import BROKEN, BrokenSpec, Mark, Node, Problem, nearest, node_of, shown
from .read import MAX_BYTES, MAX_DEPTH, read_yaml
from .written import Written

MAX_EXTENDS = 16
BUNDLED = Path(__file__).resolve().parents[1] / "specs"
FAMILIES = BUNDLED / "families"
SUFFIXES = (".yaml", ".yml")
_KEYS = [item.name for item in dataclasses.fields(Written)]


def bundled() -> list[str]:
    """Return the names of the specs that come with Transom."""
    return sorted(path.stem for path in BUNDLED.glob("*.yaml"))


def families() -> dict[str, Path]:
    """Return the files of the model families that come with Transom, by name."""
    return {path.stem: path for path in sorted(FAMILIES.glob("*.yaml"))}


def locate(given: str, beside: Path, mark: Mark, problems: list[Problem]) -> Path:
    """Return the file that a spec's or a family's name, or a path, means; a path is relative to the folder `beside`.

    Raises:
        BrokenSpec: at `mark`, no bundled spec has this name.
    """
    if given.endswith(SUFFIXES) or "/" in given or os.sep in given:
        return beside / given
    if given in families():
        return families()[given]
    if given not in bundled():
        near = nearest(given, [*bundled(), *families()])
        message = f"no bundled spec is named '{given[:100]}'{near}; a path ends in .yaml"
        raise BrokenSpec([*problems, Problem(mark, message)])
    return BUNDLED / f"{given}.yaml"


def documents(root: Node, folder: Path, problems: list[Problem]) -> list[Node]:
    """Return a document after all that it extends, the farthest first; `folder` is where its own paths begin."""
    chain = [checked(root, problems)]
    seen: list[str] = []
    while "extends" in chain[-1].items:
        parent = chain[-1].items["extends"]
        if parent.value is BROKEN:
            break
        name = parent.value if isinstance(parent.value, str) and not is_reference(parent) else ""
        is_path = "/" in name or os.sep in name
        if not name.isprintable() or not name or (is_path and not name.endswith(SUFFIXES)):
            message = f"should be a bundled spec's name or a path that ends in .yaml, not {shown(parent.plain())}"
            raise BrokenSpec([*problems, Problem(parent.mark, message)])
        path = locate(name, folder, parent.mark, problems)
        real = os.path.realpath(path)
        if real in seen:
            raise BrokenSpec([*problems, Problem(parent.mark, f"{shown(name)} extends itself, in a circle")])
        if len(seen) == MAX_EXTENDS:
            raise BrokenSpec([*problems, Problem(parent.mark, f"more than {MAX_EXTENDS} specs extend each other")])
        seen.append(real)
        chain.append(checked(read_file(path, problems, parent.mark), problems))
        folder = path.parent
    return [_without_extends(node) for node in reversed(chain)]


def read_file(path: Path, problems: list[Problem], asked: Mark | None = None) -> Node:
    """Read one YAML file; what is wrong with the file as a whole is told at `asked`, else at its own start."""
    source = display(path)
    start = asked or Mark(source, 1, 1)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            hint = f"; did you mean {source}/spec.yaml?" if (path / "spec.yaml").is_file() else ""
            raise BrokenSpec([*problems, Problem(start, f"{source} is not a file{hint}")])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BrokenSpec([*problems, Problem(start, f"{source} can't be read: {why}")]) from None
    if len(data) > MAX_BYTES:
        raise BrokenSpec([*problems, Problem(start, f"{source} has more than {MAX_BYTES:,} bytes")])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        good = data[: error.start].decode("utf-8")
        mark = Mark(source, good.count("\n") + 1, len(good) - good.rfind("\n"))
        raise BrokenSpec([*problems, Problem(mark, "not UTF-8: save it as UTF-8 text")]) from None
    return read_yaml(text.removeprefix("\ufeff"), source, problems)


def display(path: Path) -> str:
    """Return a path as messages show it: relative where it lies below the current folder."""
    relative = os.path.relpath(path)
    return os.path.normpath(path.absolute()) if relative.startswith(os.pardir) else relative


def checked(document: Node, problems: list[Problem]) -> Node:
    """Return a document that is a map with keys of a spec.

    Raises:
        BrokenSpec: it is anything else; what it holds is not told, for it may be none of the reader's business.
    """
    if any(key in _KEYS for key in document.items):
        return document
    mark = dataclasses.replace(document.mark, line=min(document.mark.line, 1), column=min(document.mark.column, 1))
    what = f"a spec is a map with some of the keys {', '.join(_KEYS)}; this is something else"
    raise BrokenSpec([*problems, Problem(mark, what)])


def override(number: int, text: str, problems: list[Problem]) -> Node:
    """Read `key=value`, the `number`th of its kind, as a document that says nothing else; the value is YAML.

    Problems stand at `override NUMBER` and the key's path.
    """
    source = f"override {number}"
    path, equals, value = text.partition("=")
    keys = re.sub(r"\[(\d+)\]", r".\1", path.strip()).split(".")
    if not equals or not all(keys):
        message = f"{shown(text)} should be key=value, such as train.steps=100"
        raise BrokenSpec([*problems, Problem(Mark(source), message)])
    path = ".".join(keys)
    if keys[0] == "extends":
        raise BrokenSpec([*problems, Problem(Mark(source, path=path), "only a file can say what it extends")])
    if len(value) > MAX_BYTES or len(keys) > MAX_DEPTH:
        raise BrokenSpec([*problems, Problem(Mark(source), "is too long")])
    node = read_yaml(value or "null", source, problems, path=path, lines=False)
    for index in range(len(keys) - 1, -1, -1):
        below = Mark(source, path=".".join(keys[: index + 1]))
        node = node_of({keys[index]: node}, Mark(source, path=".".join(keys[:index])), {keys[index]: below})
    return node


def overrides(texts: Sequence[str], problems: list[Problem]) -> list[Node]:
    """Read overrides in order, counted from 1."""
    nodes: list[Node] = []
    for number, text in enumerate(texts, 1):
        found: list[Problem] = []
        try:
            nodes.append(override(number, text, found))
            problems.extend(found)
        except BrokenSpec as error:
            problems.extend(error.errors)
    return nodes


def _without_extends(node: Node) -> Node:
    return node_of({key: child for key, child in node.items.items() if key != "extends"}, node.mark, node.keys)
