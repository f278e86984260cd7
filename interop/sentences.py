"""What a folder of sentence-transformers says beside its weights: how hidden states become one vector a text."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ..errors import CheckpointError
from ..registry.marks import Mark, Node, node_of
from ..registry.read import read_plain
from ..registry.typed import HfSettings
from .shards import read_json, read_maps, shown

MODULES = "modules.json"
POOLING = "config.json"  # in a folder of its own, which MODULES names
CHAIN = "Transformer, Pooling and, or not, Normalize"
# As a file says it in one word, and as older ones do, with a switch for each way.
WAYS = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}
SWITCHES = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "lasttoken"}


def pooled_as_said(folder: Path, hf: HfSettings) -> list[Node]:
    """Return the pieces of a spec that follow from `modules.json`: a head that pools; none without such a file.

    `hf`: the section of the folder's family, whose own heads have no weights here.

    Raises:
        CheckpointError: a file can't be read, or asks for what no head does.
    """
    if not (folder / MODULES).exists():
        return []
    source = str(folder / MODULES)
    modules = read_maps(folder, MODULES)
    chain = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if chain[:2] != ["Transformer", "Pooling"] or chain[2:] not in ([], ["Normalize"]) or modules[0].get("path"):
        raise CheckpointError(f"{source}: {shown(', '.join(chain))} is not supported; in this folder only {CHAIN}")
    head = {"kind": "pooled", "pool": _way(folder, modules[1].get("path")), "normalise": "Normalize" in chain}
    none = node_of({ours: node_of(None, Mark(source)) for ours in hf.places if ours.startswith("heads.")}, Mark(source))
    written = read_plain({"objective": "none", "model": {"head": head}}, source, [])
    return [written, node_of({"hf": node_of({"modules": none}, Mark(source))}, Mark(source))]


def _way(folder: Path, path: object) -> str:
    """Return how the module pools whose folder is `path`."""
    where = folder / PurePosixPath(str(path)).name
    config = read_json(where, POOLING)
    said = config.get("pooling_mode")
    ways = [name.removeprefix("pooling_mode_") for name, value in config.items() if value is True and name != said]
    asked = [str(said)] if said is not None else [SWITCHES.get(way, way) for way in ways if way != "include_prompt"]
    if len(asked) != 1 or asked[0] not in WAYS:
        known = ", ".join(WAYS)
        raise CheckpointError(f"{where / POOLING}: {shown(', '.join(asked))} is no way to pool; one of {known} is")
    return WAYS[asked[0]]
