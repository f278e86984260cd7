"""What a spec becomes: plain typed records of parts, complete and checked one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, cast

from ..core.component import Part
from ..core.placement import Placement, Residual, residual_fits
from .marks import Mark, Node, nearest, node_of
from .settings import ExportSettings, TrainSettings
from .tables import LONGEST, ROTATED, STRETCHED, TABLES, TRAINED, Table

NUMBER = r"\{([a-z_]+)\}"
"""What stands for a number in the name of a module."""
STACK = "stack"
"""What stands, in braces, for the name of a stack, where others stand for a number."""
PREFIX = "{prefix}"
"""What stands for the prefix of a checkpoint's names in the place of a module."""
MAYBE = "?"
"""What ends the name of something that a model may not have."""
LAYERS = "layers"
"""What a path to an option of a kind of layers begins with."""


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """Say what one block is made of.

    `residual`: whether what a sublayer adds is added to its input before the norm in front of it, or after. `position`:
    null for the stack's own, none for none. `dropout`: rate of dropping what a sublayer adds. `beside`: what mixes
    tokens beside the rest: it reads what the layer reads, without positions, and adds to what the layer gives.
    `unnormed`: sublayers that go without the norm before them. `residual_dtype`: in which they are summed: the model's,
    or fp32 at least.
    """

    placement: Placement = "pre"
    residual: Residual = "before"
    norm: Annotated[Part | None, "norm"]
    attention: Annotated[Part | None, "attention"]
    cross_attention: Annotated[Part | None, "attention"] = None
    feedforward: Annotated[Part | None, "feedforward"]
    position: Annotated[tuple[Part, ...] | None, "position"] = None
    dropout: float = 0.0
    beside: Annotated[Part | None, "attention"] = None
    unnormed: tuple[Literal["attention", "cross_attention", "feedforward", "beside"], ...] = ()
    residual_dtype: Literal["model", "fp32"] = "model"

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be from 0 to below 1, not {self.dropout}")
        residual_fits(self.placement, self.residual)
        if self.beside is not None and self.residual == "after":
            raise ValueError("beside: what is added to a norm of its own has no place where residual is after")
        if self.unnormed and self.placement not in ("pre", "sandwich", "parallel_norms"):
            raise ValueError(f"unnormed: placement '{self.placement}' has no norm before each sublayer to leave out")
        if lost := [name for name in self.unnormed if getattr(self, name) is None]:
            raise ValueError(f"unnormed: there is no {lost[0]} in this layer")

    @property
    def fixes_size(self) -> bool:
        """Whether it sets the size of what is carried from layer to layer, or adds vectors of a size of their own."""
        added = any("add" in part.cls.hooks for part in self.position or ())
        return added or self.placement == "post" or self.residual == "after"


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """Say what one stack is made of: what it embeds, its positions, its blocks in order and its last norm.

    `halve_every`: after how many layers the vectors are halved, again and again, so that they fit into fp16 at any
    depth; 0 or less for never. Norms see to it that the model stays the same, but for their eps.
    """

    embedding: Annotated[Part | None, "embedding"]
    position: Annotated[tuple[Part, ...], "position"]
    layers: tuple[LayerSpec, ...]
    norm: Annotated[Part | None, "norm"]
    halve_every: int = 0

    def __post_init__(self) -> None:
        if self.halve_every > 0 and any(layer.fixes_size for layer in self.layers):
            raise ValueError("halve_every: the vectors are of a fixed size where norms stand on their way (placement "
                             "post, residual after) or a layer adds positions; leave it out")  # fmt: skip

    def halvings(self, layer: int) -> tuple[int, int]:
        """Return how often the vectors are halved before a layer, counted from 0, and before the next."""
        return (layer // self.halve_every, (layer + 1) // self.halve_every) if self.halve_every > 0 else (0, 0)


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
    they differ, or the name of a table of such; others are refused. `cases`: their value -> a piece of a spec that is
    laid over this one instead. `refused`: their value -> why it can't be read, in words that follow it. `counted`:
    whether what goes to the options is how many items the field has. `when`: other fields -> what each must be, or one
    of what, for this one to be read at all. `of`: the field whose value is read once more, by this one; its own name is
    then for the eye alone.

    Fields that say which layers differ. `each`: a list with an item a layer, or with groups of items and how often each
    comes; item -> what that layer changes in `layer`, or its name in `layers`. `first`: a number; the name of what the
    first so many layers are. `every`: a number N; of what one of each N layers is: the last one, or the first where
    `leads`. `listed`: a list of layers, from 0; of what these are. `others`: of what the rest are. `count`: the field
    that says how many layers there are; a default of `each` with fewer items begins again, and with `again` any list
    does, and is cut where it has more.
    """

    to: tuple[str, ...] | str = ()
    counted: bool = False
    values: Mapping[str, Node] | str = field(default_factory=dict)
    cases: Mapping[str, Node] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    each: Mapping[str, Node] = field(default_factory=dict)
    first: str | None = None
    every: str | None = None
    listed: str | None = None
    per_layer: str | None = None
    others: str | None = None
    count: str | None = None
    again: bool = False
    leads: bool = False
    when: Mapping[str, Node] = field(default_factory=dict)
    of: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.values, str):
            table, mark = _table(self.values), Mark(f"table {self.values}")
            object.__setattr__(self, "refused", {**table.refused, **self.refused})
            object.__setattr__(self, "values", {name: node_of(ours, mark) for name, ours in table.values.items()})
        rules = [name for name in ("each", "first", "every", "listed", "per_layer") if getattr(self, name)]
        if len(rules) > 1:
            raise ValueError(f"{rules[1]}: a field says in one way which layers differ, and this one has {rules[0]}")
        if self.values and not self.to:
            raise ValueError("values: need an option to go to: give `to`")
        if self.counted and (self.values or not self.to):
            raise ValueError("counted: a number goes to an option as it is: give `to`, and no `values`")
        if rules and (self.to or self.count is None):
            raise ValueError(f"{rules[0]}: goes to the layers, not to an option, and needs `count`, their number")
        if self.others and (self.each or self.per_layer or not rules):
            raise ValueError("others: are those that `first`, `every` or `listed` does not choose")
        if self.again and not self.each:
            raise ValueError("again: is for a list with an item a layer: give `each`")
        object.__setattr__(self, "to", (self.to,) if isinstance(self.to, str) else self.to)

    @property
    def ours(self) -> Mapping[str, Node]:
        """Their value -> ours, in full."""
        return cast("Mapping[str, Node]", self.values)

    @property
    def chooses(self) -> bool:
        """Whether the field says which layers differ."""
        return bool(self.each or self.first or self.every or self.listed or self.per_layer)

    @property
    def kinds(self) -> set[str]:
        """The kinds of layers that it names."""
        named = {piece.value for piece in self.each.values() if isinstance(piece.value, str)}
        named |= {to.split(".")[1] for to in self.to if to.startswith(f"{LAYERS}.")}
        return named | {name for name in (self.first, self.every, self.listed, self.others) if name}


def _table(name: str) -> Table:
    """Return a table of names by its own."""
    if name not in TABLES:
        raise ValueError(f"values: '{name}' is no table of names{nearest(name, TABLES)}")
    return TABLES[name]


@dataclass(frozen=True, kw_only=True)
class RotationSettings:
    """Say where the fields of a map go that says how a rotation is stretched: `rope_theta`, `rope_type` and so on.

    `to`: the position in a spec. `when`: other fields -> what each must be, or one of what, for these to be read.
    """

    to: str
    when: Mapping[str, Node] = field(default_factory=dict)

    def fields(self, at: str) -> Mapping[str, FieldSettings]:
        """Return what each field of the map `at` sets."""
        mark = Mark(f"rotation {at}")
        kind, (longest, length) = f"{at}.rope_type", LONGEST

        def of(option: str, kinds: Sequence[str] = (), **more: Any) -> FieldSettings:
            asked = {kind: node_of(tuple(node_of(name, mark) for name in kinds), mark)} if kinds else {}
            return FieldSettings(to=f"{self.to}.{option}", when={**self.when, **asked}, **more)

        kinds = {name: node_of(name, mark) for name in STRETCHED}
        return {
            kind: of("scaling.kind", cases={"default": node_of({}, mark)}, values=kinds),
            f"{at}.{longest}": of("scaling.trained", (longest,), of=length),
            f"{at}.original_max_position_embeddings": of("scaling.trained", TRAINED),
            **{f"{at}.{name}": of(option) for name, option in ROTATED.items()},
        }


@dataclass(frozen=True, kw_only=True)
class ConfigSettings:
    """Say how a spec follows from the `config.json` of a Hugging Face folder.

    `type`: its `model_type`. `start`: a piece of a spec that is laid over this one before all else. `architectures`:
    those that there are, or patterns of them, the first where the file names none -> the piece of a spec that each lays
    over this one, or the name of another that it is like; patterns first. `fields`: field -> the option that its value
    goes to, several, or a map with more; in order, a later one wins; `a.b` is field b of the map a; null for a field
    that another spec read, and that there is not. `rotations`: a map within it -> the position that its fields go to,
    after all others, where `fields` has no word of them; null for one that another spec read. `layers`: name -> what
    layers of this kind change in `layer`; fields choose them by it, and a value goes to `layers.NAME.OPTION`.
    `defaults`: what fields are that the file leaves out; within maps any may be. `same`: fields that must be as given.
    `ignored`: glob patterns of fields that change nothing. `renamed`: an older name -> the name that it is read by.
    `reasons`: field, or architecture that is not read -> why what is refused of it is.
    `unnamed`: the architecture of files that name none, the first one unless given: those of a spec that this one
    extends come first.
    """

    type: str
    architectures: Mapping[str, Node]
    fields: Mapping[str, FieldSettings | tuple[str, ...] | str | None]
    rotations: Mapping[str, RotationSettings | str | None] = field(default_factory=dict)
    layers: Mapping[str, Node] = field(default_factory=dict)
    defaults: Mapping[str, Node] = field(default_factory=dict)
    same: Mapping[str, Node] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    start: Node | None = None
    unnamed: str | None = None

    def __post_init__(self) -> None:
        if self.unnamed is not None and self.unnamed not in self.architectures:
            raise ValueError(f"unnamed: '{self.unnamed}' is none of `architectures`")
        whole = {
            name: item if isinstance(item, FieldSettings) else FieldSettings(to=item)
            for name, item in self.fields.items()
            if item is not None
        }
        for at, rotation in self.rotations.items():
            if rotation is not None:
                rotation = RotationSettings(to=rotation) if isinstance(rotation, str) else rotation
                whole |= {name: item for name, item in rotation.fields(at).items() if name not in self.fields}
        if odd := sorted(self.defaults.keys() - self.fields.keys()):
            raise ValueError(f"defaults: '{odd[0]}' is none of `fields`")
        if odd := sorted({other for item in whole.values() for other in item.when} - whole.keys()):
            raise ValueError(f"fields: '{odd[0]}' of a `when` is none of `fields`")
        if odd := sorted({item.of for item in whole.values() if item.of is not None} - whole.keys()):
            raise ValueError(f"fields: '{odd[0]}' of an `of` is none of `fields`")
        if odd := sorted(self.same.keys() & whole.keys()):
            raise ValueError(f"same: '{odd[0]}' is one of `fields` too")
        if odd := sorted({kind for item in whole.values() for kind in item.kinds} - self.layers.keys()):
            raise ValueError(f"fields: '{odd[0]}' is none of `layers`")
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
