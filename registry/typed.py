"""What a spec becomes: plain typed records of parts, complete and checked one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, cast

from ..core.component import Part
from .settings import ExportSettings, TrainSettings

NUMBER = r"\{([a-z_]+)\}"
"""What stands for a number in the name of a module."""


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """Say what one block is made of.

    `position`: null for the stack's own, none for none. `dropout`: rate of dropping what a sublayer adds.
    """

    placement: Literal["pre", "post", "sandwich", "parallel"] = "pre"
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
    or what they begin with up to a dot -> how this checkpoint has them.
    """

    at: str
    layout: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HfSettings:
    """Say where the weights are in a Hugging Face checkpoint.

    `modules`: our module -> theirs, or a map of where it is and how it is laid out there; `{layer}` in both stands for
    any number. `ignore`: glob patterns of tensors that carry no weight.
    """

    modules: Mapping[str, Place | str]
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        places = {ours: Place(at=to) if isinstance(to, str) else to for ours, to in self.modules.items()}
        for ours, place in places.items():
            if odd := sorted(set(re.findall(NUMBER, ours)) ^ set(re.findall(NUMBER, place.at))):
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
