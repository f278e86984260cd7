"""How a spec follows from the `config.json` of a Hugging Face folder: what a family says of fields, and of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from ..core.component import Part
from .marks import Mark, Node, nearest, node_of
from .tables import ACTIVATED, ACTIVATIONS, CUT, LABELLED, LONGEST, ROTATED, STRETCHED, TABLES, TRAINED, USUAL, Table

LAYERS = "layers"
"""What a path to an option of a kind of layers begins with."""
DEPTH = "model.layers.0.repeat"
"""The path to the number of layers."""
HEADS = "model.head"
"""What a path to an option of a head begins with."""
LABELS = "id2label"
"""The field that names each class, or each kind of tokens."""
EACH = "*"
"""What stands for every head that has an option, in a path to that."""


@dataclass(frozen=True, kw_only=True)
class FieldSettings:
    """Say what one field of a `config.json` sets.

    `to`: the option, or several, that its value goes to, by its path in a spec; `model.head.*.OPTION` is that of every
    head that writes it. `values`: their value -> ours, where they differ, or the name of a table of such; others are
    refused. `cases`: their value -> a piece of a spec that is laid over this one instead. `refused`: their value -> why
    it can't be read, in words that follow it. `counted`: whether what goes to the options is how many items the field
    has. `joined`: what stands between the names of a text that is read as the list of them; a list is read too, null is
    an empty one, and the order is that of the alphabet. `when`: other fields -> what each must be, or one of what, for
    this one to be read at all. `of`: the field whose value is read once more, by this one; its own name is then for the
    eye alone. `default`: what the field is where the file leaves it out, unless the family's `defaults` say.

    Fields that say which layers differ. `each`: a list with an item a layer, or with groups of items and how often each
    comes; item -> what that layer changes in `layer`, or its name in `layers`. `first`: a number; the name of what the
    first so many layers are. `every`: a number N; of what one of each N layers is: the last one, or the first where
    `leads`. `listed`: a list of layers, from 0; of what these are. `others`: of what the rest are. A default of `each`
    with fewer items than there are layers begins again, and with `again` any list does, and is cut where it has more.
    """

    to: tuple[str, ...] | str = ()
    counted: bool = False
    joined: str | None = None
    values: Mapping[str, Node] | str = field(default_factory=dict)
    cases: Mapping[str, Node] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    each: Mapping[str, Node] = field(default_factory=dict)
    first: str | None = None
    every: str | None = None
    listed: str | None = None
    per_layer: str | None = None
    others: str | None = None
    again: bool = False
    leads: bool = False
    when: Mapping[str, Node] = field(default_factory=dict)
    of: str | None = None
    default: Node | None = None

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
        if rules and self.to:
            raise ValueError(f"{rules[0]}: goes to the layers, not to an option")
        if self.others and (self.each or self.per_layer or not rules):
            raise ValueError("others: are those that `first`, `every` or `listed` does not choose")
        if self.again and not self.each:
            raise ValueError("again: is for a list with an item a layer: give `each`")
        object.__setattr__(self, "to", (self.to,) if isinstance(self.to, str) else self.to)
        if odd := [to for to in self.to if EACH in to.replace(f"{HEADS}.{EACH}.", "", 1)]:
            raise ValueError(f"to: '{odd[0]}' is no path: {EACH} stands for heads alone, in {HEADS}.{EACH}.OPTION")
        if self.joined == "" or (self.joined is not None and (self.counted or rules)):
            raise ValueError("joined: is what stands between names that go to an option, or choose a case")

    @property
    def ours(self) -> Mapping[str, Node]:
        """Their value -> ours, in full."""
        return cast("Mapping[str, Node]", self.values)

    def parted(self, node: Node) -> Node:
        """Return a value as it is read: of names that a text joins, the list in the order of the alphabet."""
        if self.joined is None:
            return node
        value = node.value
        if isinstance(value, str):
            value = tuple(node_of(name, node.mark) for name in value.split(self.joined))
        items = value if isinstance(value, tuple) else () if value is None else (node,)
        return node_of(tuple(sorted(items, key=lambda item: str(item.value))), node.mark)

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


def _plain(name: str, to: tuple[str, ...] | str) -> FieldSettings:
    """Return what a field sets of which only the options are written that its value goes to."""
    try:
        return FieldSettings(to=to)
    except ValueError as error:
        raise ValueError(f"fields.{name}: {str(error).removeprefix('to: ')}") from None


def _table(name: str) -> Table:
    """Return a table of names by its own."""
    if name not in TABLES:
        raise ValueError(f"values: '{name}' is no table of names{nearest(name, TABLES)}")
    return TABLES[name]


@dataclass(frozen=True, kw_only=True)
class RotationSettings:
    """Say where the fields of a map go that says how a rotation is stretched: `rope_theta`, `rope_type` and so on.

    `to`: the position in a spec, or several. `when`: other fields -> what each must be, or one of what, for these to be
    read.
    """

    to: tuple[str, ...] | str
    when: Mapping[str, Node] = field(default_factory=dict)

    def lengths(self, at: str) -> Mapping[str, FieldSettings]:
        """Return what says for how long a text a rotation was trained, until a field of the map `at` or others do."""
        name, length = LONGEST
        return {f"{at}.{name}": self._of(at, "scaling.trained", (name, *TRAINED), of=length)}

    def fields(self, at: str) -> Mapping[str, FieldSettings]:
        """Return what each field of the map `at` sets."""
        mark = Mark(f"rotation {at}")
        kinds = {name: node_of(name, mark) for name in STRETCHED}
        whole = {"true": node_of(True, mark)}
        uncut = {"false": node_of(False, mark), "null": node_of(False, mark)}
        said = {"values": whole | uncut} if at == CUT[0] else {"values": whole, "refused": dict.fromkeys(uncut, CUT[1])}
        return {
            f"{at}.rope_type": self._of(at, "scaling.kind", cases={"default": node_of({}, mark)}, values=kinds),
            f"{at}.original_max_position_embeddings": self._of(at, "scaling.trained", TRAINED),
            f"{at}.truncate": self._of(at, "scaling.truncate", ("yarn",), **said),
            **{f"{at}.{name}": self._of(at, option) for name, option in ROTATED.items()},
        }

    def _of(self, at: str, option: str, kinds: Sequence[str] = (), **more: Any) -> FieldSettings:
        """Return what sets an option of the positions; `kinds`: those of rotations that have it, all unless given."""
        mark = Mark(f"rotation {at}")
        asked = {f"{at}.rope_type": node_of(tuple(node_of(name, mark) for name in kinds), mark)} if kinds else {}
        to = (self.to,) if isinstance(self.to, str) else self.to
        return FieldSettings(to=tuple(f"{path}.{option}" for path in to), when={**self.when, **asked}, **more)


@dataclass(frozen=True, kw_only=True)
class ArchitectureSettings:
    """Say what an architecture is: what it changes in its family.

    `heads`: the heads that it has, those of `model.head` unless given. `objective`, `model`, `hf`: pieces of a spec,
    laid over this one.
    """

    heads: tuple[str, ...] | None = None
    objective: Node | None = None
    model: Node | None = None
    hf: Node | None = None

    @property
    def piece(self) -> Node | None:
        """The piece of a spec that it lays over; None where it changes nothing but heads."""
        said = {"objective": self.objective, "model": self.model, "hf": self.hf}
        entries = {name: node for name, node in said.items() if node is not None}
        return node_of({**entries}, next(iter(entries.values())).mark) if entries else None


@dataclass(frozen=True, kw_only=True)
class ConfigSettings:
    """Say how a spec follows from the `config.json` of a Hugging Face folder.

    `type`: its `model_type`. `start`: a piece of a spec that is laid over this one before all else. `architectures`:
    those that there are, or patterns of them, the first where the file names none -> what each is, or the name of
    another that it is like; patterns first. `heads`: those that some of them have, beside the heads of `model.head`;
    `classes` and `tokens` have as many of these as `id2label` names, two unless given. `fields`: field -> the option
    that its value goes to, several, or a map with more; in order, a later one wins; `a.b` is field b of the map a; null
    for a field that another spec read, and that there is not. `usual`: fields that go, before all others, where those
    of their names go in most families. `rotations`: a map within it -> the position that its fields go to, after all
    others, where `fields` has no word of them; null for one that another spec read. `layers`: name -> what layers of
    this kind change in `layer`; fields choose them by it, and a value goes to `layers.NAME.OPTION`. `defaults`: what
    fields are that the file leaves out; within maps any may be. `same`: fields that must be as given. `ignored`: glob
    patterns of fields that change nothing. `renamed`: an older name -> the name that it is read by. `reasons`: field,
    or architecture that is not read -> why what is refused of it is. `unnamed`: the architecture of files that name
    none, the first one unless given: those of a spec that this one extends come first.
    """

    type: str
    architectures: Mapping[str, ArchitectureSettings | str]
    fields: Mapping[str, FieldSettings | tuple[str, ...] | str | None] = field(default_factory=dict)
    usual: tuple[str, ...] = ()
    heads: Mapping[str, Annotated[Part | None, "head"]] = field(default_factory=dict)
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
        rotations = {
            at: RotationSettings(to=item) if isinstance(item, str) else item
            for at, item in self.rotations.items()
            if item is not None
        }
        lengths = {name: item for at, rotation in rotations.items() for name, item in rotation.lengths(at).items()}
        whole = {
            name: item if isinstance(item, FieldSettings) else _plain(name, item)
            for name, item in {**self._shared(), **lengths, **self.fields}.items()
            if item is not None
        }
        for at, rotation in rotations.items():
            whole |= {name: item for name, item in rotation.fields(at).items() if name not in self.fields}
        if odd := sorted(self.defaults.keys() - {*self.fields, *whole}):
            raise ValueError(f"defaults: '{odd[0]}' is none of `fields`")
        written = {name: item.default for name, item in whole.items() if item.default is not None}
        object.__setattr__(self, "defaults", {**written, **self.defaults})
        if odd := sorted({other for item in whole.values() for other in item.when} - whole.keys()):
            raise ValueError(f"fields: '{odd[0]}' of a `when` is none of `fields`")
        if odd := sorted({item.of for item in whole.values() if item.of is not None} - whole.keys()):
            raise ValueError(f"fields: '{odd[0]}' of an `of` is none of `fields`")
        if odd := sorted(self.same.keys() & whole.keys()):
            raise ValueError(f"same: '{odd[0]}' is one of `fields` too")
        if odd := sorted({kind for item in whole.values() for kind in item.kinds} - self.layers.keys()):
            raise ValueError(f"fields: '{odd[0]}' is none of `layers`")
        for name in self.architectures:
            self.architecture(name)
        object.__setattr__(self, "fields", whole)
        if self.depth is None and (odd := [name for name, item in whole.items() if item.chooses]):
            raise ValueError(f"fields: '{odd[0]}' chooses layers, and none goes to {DEPTH}, how many there are")

    def _shared(self) -> Mapping[str, FieldSettings]:
        """Return what the fields set that the family only names, and the field of labels where a head has those."""
        if odd := [name for name in self.usual if name not in USUAL]:
            raise ValueError(f"usual: '{odd[0]}' is no usual name of a field{nearest(odd[0], USUAL)}")
        usual = {
            name: FieldSettings(to=USUAL[name], values=ACTIVATIONS if name in ACTIVATED else {}) for name in self.usual
        }
        labelled = [f"{HEADS}.{name}.{option}" for name, option in LABELLED.items() if self.heads.get(name) is not None]
        mark = Mark("labels")
        two = node_of(tuple(node_of(name, mark) for name in ("0", "1")), mark)
        return usual | ({LABELS: FieldSettings(to=tuple(labelled), counted=True, default=two)} if labelled else {})

    def architecture(self, name: str) -> ArchitectureSettings:
        """Return what an architecture is, or the one which it is like."""
        seen, found = [name], self.architectures[name]
        while isinstance(found, str):
            if found not in self.architectures or found in seen:
                raise ValueError(f"architectures: {name} is like '{found}', which says nothing of its own")
            seen.append(found)
            found = self.architectures[found]
        return found

    @property
    def depth(self) -> str | None:
        """The field that says how many layers there are, where one does."""
        return next((name for name, item in self.readings.items() if DEPTH in item.to), None)

    @property
    def readings(self) -> Mapping[str, FieldSettings]:
        """What each field sets, in full."""
        return cast("Mapping[str, FieldSettings]", self.fields)
