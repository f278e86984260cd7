"""What a spec becomes: plain typed records of parts, complete and checked one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, cast

from ..core.component import Part
from ..core.placement import Placement, Residual, residual_fits
from .configured import ConfigSettings
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
