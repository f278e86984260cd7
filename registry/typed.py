"""What a spec becomes: plain typed records of parts, complete and checked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from ..core.component import Part
from .settings import ExportSettings, TrainSettings


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
class Content:
    """Hold everything that a spec says."""

    name: str
    model: ModelSpec
    objective: Annotated[Part | None, "objective"]
    data: Annotated[Part | None, "data"]
    train: TrainSettings
    export: ExportSettings
