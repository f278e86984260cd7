"""What a planted fault is: a class with one mistake, and what the suite has to say of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from transom.conformance.registered import Profile
from transom.conformance.runner import Item, described, items

Cls = TypeVar("Cls", bound=type[Any])


@dataclass(frozen=True)
class Fault:
    """Hold a component class with one mistake.

    `row`: the number of the row that has to catch it, None where none does. `says`: a part of that row's message.
    `profile`: the quickest in which it does.
    """

    cls: type[Any]
    row: int | None
    says: str
    profile: Profile = "quick"

    @property
    def name(self) -> str:
        """Return the name of the class."""
        return self.cls.__name__

    @property
    def kind(self) -> str:
        """Return the kind of component."""
        return str(self.cls.kind)

    @property
    def wrong(self) -> str:
        """Return what is wrong, and what was meant."""
        return " ".join(inspect.getdoc(self.cls).split())  # type: ignore[union-attr]

    @property
    def sound(self) -> type[Any]:
        """Return the class without the mistake."""
        return self.cls.__bases__[0]


@dataclass(frozen=True)
class Caught:
    """Hold which rows catch a fault; `smallest`: the smallest input that fails row `shown`."""

    fault: Fault
    rows: tuple[int, ...]
    shown: int | None
    smallest: str

    def __str__(self) -> str:
        return f"{self.fault.name}: {', '.join(map(str, self.rows)) or 'none'} ({self.smallest})"


FAULTS: dict[str, Fault] = {}


def planted(row: int | None, says: str = "", profile: Profile = "quick") -> Callable[[Cls], Cls]:
    """Plant a class, derived from a sound one by nothing but its mistake."""

    def plant(cls: Cls) -> Cls:
        assert cls.__name__ not in FAULTS, f"two faults are called {cls.__name__}"
        FAULTS[cls.__name__] = Fault(cls, row, says, profile)
        return cls

    return plant


def failure(item: Item) -> str:
    """Run a check as it is drawn, without making it small, and return how it fails; empty where it passes."""
    if item.subject is None:
        return ""
    error = item.attempt(item.subject, {})[1]
    return "" if error is None else described(error)


def first_failure(cls: type[Any], row: int, profile: Profile) -> tuple[Item, str] | None:
    """Return the first check of a row that fails, and how; None where all pass."""
    for item in items(cls, profile=profile, rows=[row]):
        if said := failure(item):
            return item, said
    return None


def searched(fault: Fault) -> Caught:
    """Run every row of the full profile on a fault, each up to its first failure, and make one of these small."""
    failing: dict[int, Item] = {}
    for item in items(fault.cls, profile="full"):
        if item.row.number not in failing and failure(item):
            failing[item.row.number] = item
    if not failing:
        return Caught(fault, (), None, "")
    shown = fault.row if fault.row in failing else min(failing)
    return Caught(fault, tuple(failing), shown, failing[shown].run().smallest)
