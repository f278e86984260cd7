"""Make a failing input as small as it can be: fewer rows and tokens, fewer options, while it fails the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .cases import Case, fits
from .trial import Failure

TRIES = 40
SECONDS = 30.0

Attempt = Callable[[Case, Mapping[str, int]], Exception | None]
"""Run a row with a choice of options and sizes, and return how it fails."""


@dataclass
class Shrinker:
    """Try smaller inputs, at most `TRIES` of them and for `SECONDS`, keeping the smallest that still fails alike.

    `error`: how that one fails. `sizes`: by name. `least`: how small each may be.
    """

    attempt: Attempt
    case: Case
    error: Exception
    sizes: dict[str, int]
    least: Mapping[str, int]
    _tries: int = 0
    _end: float = field(default_factory=lambda: time.monotonic() + SECONDS)

    def shrink(self) -> None:
        """Shrink options first, then each size in the order in which it was drawn."""
        for name, _ in self.case.options:
            smaller = self.case.without(name)
            if fits(smaller):
                self._try(smaller, self.sizes)
        for name in self.sizes:
            self._lower(name)

    def _lower(self, name: str) -> None:
        """Lower one size: by bisection down to where it no longer fails, as if it failed at all above that."""
        least, high = self.least[name], self.sizes[name]
        if least >= high or self._try(self.case, self.sizes | {name: least}):
            return
        low = least + 1
        while low < high:
            middle = (low + high) // 2
            if self._try(self.case, self.sizes | {name: middle}):
                high = middle
            else:
                low = middle + 1

    def _try(self, case: Case, sizes: Mapping[str, int]) -> bool:
        if self._tries >= TRIES or time.monotonic() > self._end:
            return False
        self._tries += 1
        error = self.attempt(case, sizes)
        if error is None or not alike(error, self.error):
            return False
        self.case, self.sizes, self.error = case, dict(sizes), error
        return True

    def __str__(self) -> str:
        sizes = [f"{name} {value}" for name, value in self.sizes.items()]
        options = [f"{name} {value}" for name, value in self.case.options]
        return ", ".join([*sizes, *options]) or "any input"


def alike(one: Exception, other: Exception) -> bool:
    """Say whether two failures are of the same fault: the same words, or the same type of error."""
    if isinstance(one, Failure) and isinstance(other, Failure):
        return one.what == other.what
    return type(one) is type(other)
