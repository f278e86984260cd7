"""What a spec becomes: plain typed records of parts, complete and checked one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, cast

from ..core.component import Part
from .marks import Node
from .settings import ExportSettings, TrainSettings

NUMBER = r"\{([a-z_]+)\}"
"""What stands for a number in the name of a module."""
STACK = "stack"
"""What stands, in braces, for the name of a stack, where others stand for a number."""
PREFIX = "{prefix}"
"""What stands for the prefix of a checkpoint's names in the place of a module."""
MAYBE = "?"
"""What ends the name of something that a model may not have."""


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """Say what one block is made of.

    `position`: null for the stack's own, none for none. `dropout`: rate of dropping what a sublayer adds.
    """

    placement: Literal["pre", "post", "sandwich", "parallel", "parallel_norms"] = "pre"
    norm: Annotated[Part | None, "norm"]
    attention: Annotated[Part | None, "attention"]
    cross_attention: Annotated[Part | None, "attention"] = None
    feedforward: Annotated[Part | None, "feedforward"]
    position: Annotated[tuple[Part, ...] | None, "position"] = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be from 0 to below 1, not {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """Say what one stack is made of: what it embeds, its positions, its blocks in order and its last norm."""

    embedding: Annotated[Part | None, "embedding"]
    position: Annotated[tuple[Part, ...], "position"]
    layers: tuple[LayerSpec, ...]
    norm: Annotated[Part | None, "norm"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Say what a model is made of; `stacks` by the names that its topology gives them, `heads` by their own."""

    topology: Annotated[Part, "topology"]
    d_model: int
    max_seq_len: int
    stacks: Mapping[str, StackSpec]
    heads: Mapping[str, Annotated[Part, "head"]]

    def __post_init__(self) -> None:
        for name in ("d_model", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Say where a module stands in a published checkpoint.

    `at`: what the names of its tensors begin with, "" for nothing; a `{layer}` of our own name stands for its number.
    `layout`: which of its published layouts it has, the module's first one unless given. `names`: names of that layout,
    or what they begin with up to a dot -> how this checkpoint has them; `norm?` is a name that the layout may not have.
    """

    at: str
    layout: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def behind(self, prefix: str) -> Place:
        """Return this place with a prefix in the place of what stands for it."""
        names = {ours: theirs.replace(PREFIX, prefix) for ours, theirs in self.names.items()}
        return replace(self, at=self.at.replace(PREFIX, prefix), names=names)

    @property
    def sure(self) -> Sequence[str]:
        """The names that the layout must have."""
        return [name for name in self.names if not name.endswith(MAYBE)]

    @property
    def renames(self) -> Mapping[str, str]:
        """How this checkpoint has each name."""
        return {name.removesuffix(MAYBE): there for name, there in self.names.items()}


@dataclass(frozen=True, kw_only=True)
class FieldSettings:
    """Say what one field of a `config.json` sets.

    `to`: the option, or several, that its value goes to, by its path in a spec. `values`: their value -> ours, where
    they differ; others are refused. `cases`: their value -> a piece of a spec that is laid over this one instead.
    `each`: the field is a list with an item a layer; item -> what that layer changes in `layer`. `count`: the field
    that says how many layers there are; a default of fewer items begins again. `counted`: whether what goes to the
    options is how many items the field has.
    """

    to: tuple[str, ...] | str = ()
    counted: bool = False
    values: Mapping[str, Node] = field(default_factory=dict)
    cases: Mapping[str, Node] = field(default_factory=dict)
    each: Mapping[str, Node] = field(default_factory=dict)
    count: str | None = None

    def __post_init__(self) -> None:
        if self.values and not self.to:
            raise ValueError("values: need an option to go to: give `to`")
        if self.counted and (self.values or not self.to):
            raise ValueError("counted: a number goes to an option as it is: give `to`, and no `values`")
        if self.each and (self.to or self.count is None):
            raise ValueError("each: goes to the layers, not to an option, and needs `count`, their number")
        object.__setattr__(self, "to", (self.to,) if isinstance(self.to, str) else self.to)


@dataclass(frozen=True, kw_only=True)
class ConfigSettings:
    """Say how a spec follows from the `config.json` of a Hugging Face folder.

    `type`: its `model_type`. `architectures`: those that there are, the first where the file names none -> the piece of
    a spec that each lays over this one, or the name of another that it is like. `fields`: field -> the option that its
    value goes to, several, or a map with more; in order, a later one wins; `a.b` is field b of the map a. `defaults`:
    what fields are that the file leaves out; within maps any may be. `same`: fields that must be as given. `ignored`:
    glob patterns of fields that change nothing. `renamed`: an older name -> the name that it is read by.
    """

    type: str
    architectures: Mapping[str, Node]
    fields: Mapping[str, FieldSettings | tuple[str, ...] | str]
    defaults: Mapping[str, Node] = field(default_factory=dict)
    same: Mapping[str, Node] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = {
            name: item if isinstance(item, FieldSettings) else FieldSettings(to=item)
            for name, item in self.fields.items()
        }
        if odd := sorted(self.defaults.keys() - whole.keys()):
            raise ValueError(f"defaults: '{odd[0]}' is none of `fields`")
        if odd := sorted(self.same.keys() & whole.keys()):
            raise ValueError(f"same: '{odd[0]}' is one of `fields` too")
        for name in self.architectures:
            self.piece(name)
        object.__setattr__(self, "fields", whole)

    def piece(self, architecture: str) -> Node:
        """Return the piece of a spec that an architecture lays over, that of the one which it is like."""
        seen, node = [architecture], self.architectures[architecture]
        while isinstance(node.value, str):
            if node.value not in self.architectures or node.value in seen:
                raise ValueError(f"architectures: {architecture} is like '{node.value}', which has no piece of a spec")
            seen.append(node.value)
            node = self.architectures[node.value]
        return node

    @property
    def readings(self) -> Mapping[str, FieldSettings]:
        """What each field sets, in full."""
        return cast("Mapping[str, FieldSettings]", self.fields)


@dataclass(frozen=True, kw_only=True)
class HfSettings:
    """Say where the weights are in a Hugging Face checkpoint.

    `modules`: our module -> theirs, or a map of where it is and how it is laid out there, or null for a module that
    another spec named and that is not there; `{layer}` in both stands for any number, and `norm?` for a module that may
    not be there. `{stack}` stands for the name of any stack, and may be left out of theirs where the model has but one.
    `ignore`: glob patterns of tensors that carry no weight. `prefix`: what their names begin with, and may be without
    in some checkpoints; `{prefix}` in a place stands for it. `endings`: what names end in -> how this checkpoint has
    it. `config`: how the rest of the spec follows from `config.json`, where it does.
    """

    modules: Mapping[str, Place | str | None]
    ignore: tuple[str, ...] = ()
    prefix: str = ""
    endings: Mapping[str, str] = field(default_factory=dict)
    config: ConfigSettings | None = field(default=None, compare=False)  # a run is past it, and does not keep it

    def __post_init__(self) -> None:
        there = {ours: to for ours, to in self.modules.items() if to is not None}
        places = {ours: Place(at=to) if isinstance(to, str) else to for ours, to in there.items()}
        places = {ours: place.behind(self.prefix) for ours, place in places.items()}
        for ours, place in places.items():
            here, other = (set(re.findall(NUMBER, name)) for name in (ours, place.at))
            if odd := sorted((here ^ other) - (here & {STACK})):
                raise ValueError(f"modules: {{{odd[0]}}} must stand in both '{ours}' and '{place.at}', or in neither")
        object.__setattr__(self, "modules", places)  # written out, so that specs that say the same are equal

    @property
    def places(self) -> Mapping[str, Place]:
        """Where our modules are, each in full."""
        return cast("Mapping[str, Place]", self.modules)


@dataclass(frozen=True, kw_only=True)
class Content:
    """Hold everything that a spec says."""

    name: str
    model: ModelSpec
    objective: Annotated[Part | None, "objective"]
    data: Annotated[Part | None, "data"]
    train: TrainSettings
    export: ExportSettings
    hf: HfSettings | None = None
