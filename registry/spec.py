"""Reads a spec: extends, merges, resolves and checks it, and gives it typed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .expand import expand, written_out
from .forms import Reading
from .interpolate import interpolate
from .manager import Registry, default
from .marks import BROKEN, BrokenSpec, Mark, Node, Problem, Problems
from .read import read_plain, read_yaml, scalar, trap
from .records import parts_in, record_of
from .sources import documents, locate, overrides, read_file
from .typed import Content, LayerSpec, ModelSpec, StackSpec
from .written import check_written, spec_form

__all__ = [
    "BrokenSpec",
    "LayerSpec",
    "ModelSpec",
    "Problem",
    "Spec",
    "StackSpec",
    "dump_spec",
    "load_spec",
    "parse_spec",
]


@dataclass(frozen=True, kw_only=True)
class Spec(Content):
    """Hold a complete spec.

    `resolved`: plain data that alone rebuilds it (`dump_spec` writes it as YAML). `dropped`: notes of options that were
    written but have no effect, because the kind that had them was swapped, or that have a new name. `packages`: those
    that its parts come from, besides Transom: name -> distribution and version. Specs that resolve alike are equal.
    """

    resolved: dict[str, Any]
    dropped: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    origin: Node = dataclasses.field(repr=False, compare=False)

    def mark(self, path: str) -> Mark:
        """Return where a value was written; `path` leads to it in this object (`model.stacks.decoder.layers.3.norm`).

        A default stands where the map that leaves it out does.
        """
        node = self.origin
        for key in path.split("."):
            if isinstance(node.value, tuple) and key.isdecimal() and int(key) < len(node.value):
                node = node.value[int(key)]
            elif key in node.items:
                node = node.items[key]
            else:
                break
        return node.mark

    def where(self, path: str) -> str:
        """Return the place of a value as `file:line:column` (see `mark`)."""
        return str(self.mark(path))

    def problem(self, path: str, message: str) -> Problem:
        """Return a located problem with a value; raise several as `BrokenSpec(problems)`."""
        return Problem(self.mark(path), message)


def load_spec(
    path_or_name: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    laid: Sequence[Node] = (),
    registry: Registry | None = None,
) -> Spec:
    """Read a spec from a file, or a bundled one by its name; `overrides` are `key=value` with a YAML value.

    `laid`: pieces of specs that are laid over it before the overrides, one after the other.

    Raises:
        SpecError: with everything that is wrong, each at its file, line and column.
        PluginError: a package that the spec names is installed but can't be used.
    """
    given = os.fspath(path_or_name)
    problems = Problems()
    path = locate(given, Path(), Mark(given[:100]), problems) if isinstance(path_or_name, str) else Path(given)
    root = read_file(path, problems)
    return _read(root, path.stem, path.parent, overrides, problems, registry, laid)


def parse_spec(
    source: str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    folder: str | os.PathLike[str] = ".",
    registry: Registry | None = None,
) -> Spec:
    """Read a spec from YAML text or plain dicts; `folder` is where paths in `extends` begin. Raise as `load_spec`."""
    problems = Problems()
    if isinstance(source, str):
        root = read_yaml(source, "<text>", problems)
    else:
        root = read_plain(source, "<spec>", problems)
    return _read(root, "spec", Path(folder), overrides, problems, registry)


def dump_spec(spec: Spec) -> str:
    """Return a spec as the YAML text that alone rebuilds it."""
    return yaml.dump(spec.resolved, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Write texts in quotes wherever `read_yaml` would take them for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = isinstance(scalar(text), str) and trap(text) is None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_Dumper.add_representer(str, _write_text)


def _read(
    root: Node,
    name: str,
    folder: Path,
    texts: Sequence[str],
    problems: list[Problem],
    registry: Registry | None,
    laid: Sequence[Node] = (),
) -> Spec:
    reading = Reading(registry or default(), problems)
    layers = [*documents(root, folder, problems), *laid, *overrides(texts, problems)]
    for document in layers:
        check_written(document, reading)
    merged = layers[0]
    for document in layers[1:]:
        merged = spec_form().merge(merged, document, reading)
    expanded = expand(interpolate(merged, problems), name, reading)
    content = record_of(Content).bind(expanded.node, reading)
    if problems or content is BROKEN:
        raise BrokenSpec(problems)
    resolved = written_out(content, expanded.shapes, reading.registry)
    try:
        read_plain(resolved, "<resolved>", [])
    except BrokenSpec as error:
        why = f"too many different layers: written out, the spec has {error.errors[0].message}"
        raise BrokenSpec([Problem(expanded.node.mark, why)]) from None
    fields = {item.name: getattr(content, item.name) for item in dataclasses.fields(Content)}
    found = {part.cls for part in parts_in(content, set())}
    brought = filter(None, map(reading.registry.package, found))
    packages = {
        item.name: f"{item.distribution} {item.version}" for item in sorted(brought, key=lambda item: item.name)
    }
    notes = tuple(reading.dropped.values())
    return Spec(**fields, resolved=resolved, dropped=notes, packages=packages, origin=expanded.node)
