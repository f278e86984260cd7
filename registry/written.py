"""The layout of a spec as it is written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from ..core.component import Part
from .forms import Form, MapOf, Reading, Schemas, merge_maps
from .manager import Registry
from .marks import BROKEN, Node, node_of
from .parts import NONE, PartForm, as_map
from .records import Record, record_of
from .settings import ExportSettings, TrainSettings
from .typed import HfSettings, LayerSpec

ONLY_HEAD = "head"  # the name of a head that is written without one


@dataclass(frozen=True, kw_only=True)
class Group:
    """Repeat some layers.

    `repeat`: how many times. `pattern`: the layers, each by what it changes in `layer`; without it, `layer` itself.
    """

    repeat: int = 1
    pattern: tuple[LayerSpec, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class WrittenStack:
    """A stack of blocks.

    `embedding`: what turns its input to vectors. `position`: how order enters, one or several. `layer`: what every
    block starts from. `first`: what the very first block changes in what it would be. `layers`: groups of blocks, in
    order. `norm`: after the last block. `halve_every`: after how many layers the vectors are halved, again and again,
    so that they fit into fp16 at any depth; 0 for never.
    """

    embedding: Annotated[Part | None, "embedding"]
    position: Annotated[tuple[Part, ...], "position"]
    layer: LayerSpec
    first: LayerSpec | None = None
    layers: tuple[Group, ...]
    norm: Annotated[Part | None, "norm"]
    halve_every: int = 0


@dataclass(frozen=True, kw_only=True)
class WrittenModel(WrittenStack):
    """A model; what is said of stacks here holds for all of them.

    `topology`: how stacks are wired. `d_model`: width of the vectors. `max_seq_len`: most tokens in a sequence.
    `head`: what reads the last vectors, one or a map of named ones.
    """

    topology: Annotated[Part, "topology"]
    d_model: int
    max_seq_len: int
    head: Annotated[Part | None, "head"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """A Transom spec.

    `name`: of the experiment. `extends`: a bundled spec's name, or the path of one relative to this file. `model`: what
    is built. `objective`: what is learned. `data`: what from. `train`: how. `export`: what is shipped. `hf`: where the
    weights are in a Hugging Face checkpoint.
    """

    name: str
    extends: str
    model: WrittenModel
    objective: Annotated[Part | None, "objective"]
    data: Annotated[Part | None, "data"]
    train: TrainSettings
    export: ExportSettings
    hf: HfSettings | None


class HeadForm(Form):
    """One head, a map of named heads, or `none`."""

    wanted = "a head: its kind, a map with kind and options, a map of named heads, or none"

    def __init__(self) -> None:
        self.one = PartForm("head", optional=True)
        self.many = MapOf(PartForm("head", optional=True))

    def _bind(self, node: Node, reading: Reading) -> Any:
        return (self.many if is_named(node) else self.one).bind(node, reading)

    def merge(self, base: Node, over: Node, reading: Reading) -> Node:
        """Lay a head over another; over named ones, options without a name are those of the one called `head`."""
        if base.value == NONE and is_named(over) and any("kind" in head.items for head in over.items.values()):
            return over
        if not is_named(base):
            return self.one.merge(base, over, reading)
        if self._names(base, over, reading):
            return self.many.merge(base, over, reading)
        if ONLY_HEAD not in base.items:
            return over
        return self.many.merge(base, node_of({ONLY_HEAD: over}, over.mark), reading)

    def _names(self, base: Node, over: Node, reading: Reading) -> bool:
        """Say whether what is laid over named heads names heads too, or holds options of one."""
        if not isinstance(over.value, dict) or "kind" in over.items:
            return False
        if ONLY_HEAD not in base.items or over.items.keys() & base.items.keys():
            return True
        head = as_map(base.items[ONLY_HEAD])
        kind = head.items.get("kind") if head else None
        if kind is None or kind.value == NONE:
            return is_named(over)
        cls = self.one.component(kind, reading)
        return cls is None or not over.items.keys() <= record_of(cls.Config).forms.keys()

    def dump(self, value: Mapping[str, Part], registry: Registry) -> Any:
        one = None if not value else value[ONLY_HEAD] if value.keys() == {ONLY_HEAD} else BROKEN
        return self.many.dump(value, registry) if one is BROKEN else self.one.dump(one, registry)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"anyOf": [self.one.schema(schemas), self.many.schema(schemas)]}


class ModelForm(Record):
    """A model as it is written: other maps in it are the stacks that its topology names."""

    def __init__(self) -> None:
        super().__init__(WrittenModel)
        self.forms["head"] = HeadForm()

    def _bind(self, node: Node, reading: Reading) -> Any:
        known = {key: child for key, child in node.items.items() if key in self.forms}
        return self.bind_fields(node, known, reading) if node.items else super()._bind(node, reading)

    def merge(self, base: Node, over: Node, reading: Reading) -> Node:
        return merge_maps(base, over, reading, lambda key: self.forms.get(key) or record_of(WrittenStack))

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        model = super().schema(schemas)
        stack = record_of(WrittenStack).schema(schemas)
        return {**model, "properties": {**model["properties"], **dict.fromkeys(schemas.stack_names(), stack)}}


@functools.cache
def spec_form() -> Record:
    """Return the form of a whole spec as it is written."""
    form = Record(Written)
    form.forms["model"] = ModelForm()
    return form


def is_named(node: Node) -> bool:
    """Say whether a head's node is a map of named heads: it names no kind, and all in it are parts, or none."""
    there = node.items.values()
    return "kind" not in node.items and any(isinstance(child.value, dict) or child.value == NONE for child in there)


def check_written(document: Node, reading: Reading) -> None:
    """Note the problems of one document on its own, which others may complete or override."""
    spec_form().bind(document, dataclasses.replace(reading, partial=True))
