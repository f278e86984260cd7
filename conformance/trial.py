"""Measure: what a row compares with, draws from and takes its sizes from, and how it says that something is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core.choice import Choices

Drawn = TypeVar("Drawn")

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""The largest error that passes, relative to the largest magnitude of what is right."""

FAR = 1e-3
"""What has to differ differs by this much at least, relative to the largest magnitude."""


@dataclass(frozen=True)
class Figure:
    """Hold one measurement: what was measured, what came out and how much is allowed."""

    what: str
    found: float
    allowed: float

    @property
    def share(self) -> float:
        """Return how much of what is allowed was used up: above 1 it is too much."""
        if self.found != self.found:
            return float("inf")
        return self.found / self.allowed if self.allowed else float("inf") if self.found else 0.0

    def __str__(self) -> str:
        return f"{self.found:.1e} of {self.allowed:.0e}"


class Failure(AssertionError):
    """Say that a component fails a row.

    `what`: what was compared, the same words for the same fault. `figure`: the measurement, None where the check is
    exact. `shape`: of the tensor that was compared, where there is one.
    """

    def __init__(self, what: str, figure: Figure | None = None, shape: Sequence[int] | None = None) -> None:
        self.what = what
        self.figure = figure
        self.shape = None if shape is None else tuple(shape)
        measured = "" if figure is None else f": {figure.found:.2e}, allowed is {figure.allowed:.0e}"
        super().__init__(what + measured + ("" if shape is None else f", in a tensor of {tuple(shape)}"))


class Trial:
    """Measure one row on one subject.

    `rng` and torch's own generator are seeded by whoever runs the trial. `sizes`: the numbers that a row drew by name,
    and `least` how small each may be; `given` replaces what would be drawn. `worst`: the measurement nearest to its
    allowance, or furthest beyond it. `exact`: how many exact checks held. `ties`: how many choices by content differed
    between what was compared, each a near tie.
    """

    def __init__(self, seed: int = 0, given: Mapping[str, int] | None = None) -> None:
        self.rng = random.Random(seed)
        self.sizes: dict[str, int] = {}
        self.least: dict[str, int] = {}
        self.worst: Figure | None = None
        self.exact = 0
        self.ties = 0
        self._given = given or {}

    def size(self, name: str, choices: Sequence[int], least: int = 1) -> int:
        """Draw a size by name: one of the choices; after a failure smaller ones are tried, down to `least`."""
        drawn = self.rng.choice(choices)
        if name not in self.sizes:
            self.sizes[name] = self._given.get(name, drawn)
            self.least[name] = least
        return self.sizes[name]

    def choice(self, choices: Sequence[Drawn]) -> Drawn:
        """Draw one of several that are not sizes."""
        return self.rng.choice(choices)

    def place(self, start: int, stop: int) -> int:
        """Draw a whole number from `start` to below `stop`; `start` where nothing lies between."""
        return self.rng.randrange(start, stop) if stop > start else start

    def within(self, found: float, allowed: float, what: str, shape: Sequence[int] | None = None) -> None:
        """Check that a measurement is at most what is allowed; a NaN is not.

        Raises:
            Failure: it is more.
        """
        figure = Figure(what, float(found), float(allowed))
        if self.worst is None or figure.share >= self.worst.share:
            self.worst = figure
        if not figure.share <= 1:
            raise Failure(what, figure, shape)

    def close(self, got: Tensor, want: Tensor, dtype: torch.dtype = torch.float64, what: str = "the result") -> None:
        """Check that two tensors agree to the tolerance of a dtype.

        Raises:
            Failure: they do not, or their shapes differ.
        """
        self.holds(got.shape == want.shape, f"{what} has another shape", got.shape)
        self.within(error(got, want), TOLERANCE[dtype], f"{what} differs, relative to the largest value", got.shape)

    def all_close(self, got: Iterable[Tensor], want: Iterable[Tensor], what: str = "a gradient") -> None:
        """Check that tensors agree pairwise in fp64."""
        for one, other in zip(got, want, strict=True):
            self.close(one, other, what=what)

    def alike(self, made: Choices, taken: Choices, dtype: torch.dtype = torch.float64) -> None:
        """Check that what chose for itself loses little where what was made to take its choices would have chosen else.

        Those are near ties, and are counted.
        """
        self.holds(len(made.chosen) == len(taken.chosen), "what is compared chooses another number of times")
        for lost in taken.lost:
            self.ties += int((lost > 0).sum())
            most = float(lost.max()) if lost.numel() else 0.0
            self.within(most, TOLERANCE[dtype], "what a choice loses that the other does not make", lost.shape)

    def same_choices(self, got: Iterable[Tensor], want: Iterable[Tensor], what: str) -> None:
        """Check that the same is chosen, in whatever order."""
        for one, other in zip(got, want, strict=True):
            self.equal(one.sort(-1).values, other.sort(-1).values, what)

    def equal(self, got: Tensor, want: Tensor, what: str) -> None:
        """Check that two tensors are bit-equal."""
        self.holds(torch.equal(got, want), f"{what} is not bit-equal", got.shape)

    def finite(self, *tensors: Tensor, what: str = "the result") -> None:
        """Check that nothing is infinite or NaN."""
        self.holds(all(bool(t.isfinite().all()) for t in tensors), f"{what} is not finite")

    def apart(self, got: Tensor, want: Tensor, what: str) -> None:
        """Check that two tensors of one shape differ, by `FAR` at least."""
        found = error(got, want)
        self.holds(found > FAR, f"{what}: it differs by {found:.0e} only", got.shape)

    def holds(self, condition: object, what: str, shape: Sequence[int] | None = None) -> None:
        """Check what either holds or not; `what` says what is wrong where it does not.

        Raises:
            Failure: it does not hold.
        """
        if not condition:
            raise Failure(what, shape=shape)
        self.exact += 1

    def raises(self, error: type[Exception], call: Callable[[], Any], what: str, says: Iterable[str] = ()) -> None:
        """Check that a call is refused with an error of this type, whose message has every text of `says`."""
        try:
            call()
        except error as refused:
            for text in says:
                self.holds(text in str(refused), f"{what}: the message {str(refused)!r} does not say {text!r}")
            self.exact += 1
            return
        raise Failure(f"{what}: nothing was raised")


def error(got: Tensor, want: Tensor) -> float:
    """Return the largest difference relative to the wanted values' largest magnitude; NaN counts as infinite."""
    if want.numel() == 0:
        return 0.0
    got, want = got.detach().double(), want.detach().double()
    most = (got - want).abs().max() / want.abs().max().clamp(min=1e-30)
    return float("inf") if most.isnan() else float(most)


def gradients(y: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a fixed random projection of y; 0 where it does not depend on one."""
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True, materialize_grads=True)
