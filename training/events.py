"""What a training run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Started:
    """Say that training begins in `folder`: of `parameters` numbers `trained` are learned, until step `steps`.

    `data`: what there is to learn from, as text.
    """

    folder: Path
    steps: int
    parameters: int
    trained: int
    device: str
    data: str


@dataclass(frozen=True)
class Initialised:
    """Say that weights were taken from another run; `fresh` names the parameters of heads that it did not have."""

    run: Path
    fresh: tuple[str, ...]


@dataclass(frozen=True)
class Resumed:
    """Say that training goes on after `step`."""

    step: int
    steps: int


@dataclass(frozen=True)
class Stepped:
    """Give a logged step's figures: loss (nats a target), lr, grad_norm, tokens (targets so far), tokens_per_second."""

    step: int
    steps: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Evaluated:
    """Give the figures of the held-out data after `step`, as `evaluate` returns them."""

    step: int
    steps: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Saved:
    """Say that a whole checkpoint lies in `folder`."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Stopped:
    """Say that training has ended, and why: all steps are `done`, or evaluations no longer improved (`early_stop`)."""

    step: int
    reason: Literal["done", "early_stop"]


Event = Started | Initialised | Resumed | Stepped | Evaluated | Saved | Stopped
Report = Callable[[Event], None]
