"""Which model family a Hugging Face folder is of, and the spec that follows from its `config.json`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import CheckpointError
from ..registry.marks import Mark, Node, nearest, node_of
from ..registry.sources import families, read_file
from ..registry.spec import Spec, load_spec
from ..registry.typed import HfSettings, Place
from .config import laid_over
from .folders import CONFIG, TOKENIZER
from .sentences import pooled_as_said
from .shards import Shards, read_json, shown
from .words import tokenizer_of


def family_spec(hf_dir: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Spec:
    """Return the spec of a Hugging Face folder: its family's, with what `config.json` says laid over it.

    `overrides` are `key=value`, as `load_spec` takes them, and come last.

    Raises:
        CheckpointError: the folder or its `config.json` can't be read, or no family is known by its `model_type`.
        SpecError: a field of `config.json` is missing, is not known, or has a value that is not, each at its place; or
            what the overrides make of the spec is wrong.
    """
    folder = Path(hf_dir)
    config = read_json(folder, CONFIG)
    place = families()[family_of(config, folder / CONFIG)]
    family = load_spec(place)
    hf = family.hf
    assert hf is not None
    laid = laid_over(config, str(folder / CONFIG), family)
    asked = load_spec(place, laid=laid).hf if hf.prefix else None  # an architecture may have a prefix of its own
    if asked is not None and not any(name.startswith(asked.prefix) for name in Shards(folder).found):
        laid.append(_without_prefix(asked, str(folder)))
    laid += pooled_as_said(folder, hf)
    options = getattr(family.data.config, "tokenizer", None) if family.data else None
    if options is not None and (folder / TOKENIZER).exists():
        laid.append(_room_for(tokenizer_of(folder), options.vocab_size, str(folder / TOKENIZER)))
    return load_spec(place, overrides, laid=laid)


def _room_for(tokenizer: Tokenizer, least: int, source: str) -> Node:
    """Return a piece of a spec that lets its data have as many tokens as a tokenizer, and the `least` at least."""
    mark, size = Mark(source), max([least - 1, *tokenizer.get_vocab().values()]) + 1
    options = node_of({"vocab_size": node_of(size, mark)}, mark)
    return node_of({"data": node_of({"tokenizer": options}, mark)}, mark)


def family_of(config: Mapping[str, Any], source: Path) -> str:
    """Return the name of the family that reads a `config.json`, by its type and, where several do, its architectures.

    Raises:
        CheckpointError: no family reads the type; `source` is what the message calls the file.
    """
    model_type, architectures = config.get("model_type"), config.get("architectures")
    places = families()
    # A file in which the type does not stand can't be of it, and is not worth parsing.
    likely = {n: p for n, p in places.items() if str(model_type) in p.read_text(encoding="utf-8")}
    fitting = _by_type(likely).get(str(model_type), [])
    if not fitting:
        near = nearest(str(model_type), _by_type(places))
        raise CheckpointError(f"{source}: model_type: no family reads {shown(model_type)}{near}; give a spec")
    named = set(architectures) if isinstance(architectures, list) else set()
    return next((name for name, there in fitting if named & there), fitting[0][0])


def _by_type(places: Mapping[str, Path]) -> dict[str, list[tuple[str, set[str]]]]:
    """Return which families read each `model_type`: their names, and the architectures that they know."""
    known: dict[str, list[tuple[str, set[str]]]] = {}
    for name, path in places.items():
        config = read_file(path, []).items["hf"].items["config"].items
        known.setdefault(str(config["type"].value), []).append((name, set(config["architectures"].items)))
    return known


def _without_prefix(hf: HfSettings, source: str) -> Node:
    """Return a piece of a spec that says of all modules that they stand in the checkpoint without the prefix."""
    mark = Mark(source)

    def place(there: Place) -> Node:
        """Return a place in full, for what is laid over a plain text replaces it."""
        at = f"{there.at}.".removeprefix(hf.prefix).removesuffix(".")
        entries = {"at": node_of(at, mark)}
        if there.layout is not None:
            entries["layout"] = node_of(there.layout, mark)
        if there.names:
            whole = hf.prefix if not there.at else ""  # names that are not relative to a place have it too
            names = {old: node_of(new.removeprefix(whole), mark) for old, new in there.names.items()}
            entries["names"] = node_of(names, mark)
        return node_of(entries, mark)

    modules = node_of({ours: place(there) for ours, there in hf.places.items()}, mark)
    return node_of({"hf": node_of({"modules": modules, "prefix": node_of("", mark)}, mark)}, mark)
