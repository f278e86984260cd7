"""Hold the rows: each a number, a title and a function that proves one thing of a component at one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .cases import Case, cases_of
from .places import everywhere
from .subjects import Subject
from .trial import Trial

Profile = Literal["quick", "full"]
Places = Callable[[Sequence[Case]], Iterable[Subject]]
Excuse = Callable[[type[Any]], str]
Check = Callable[[Subject, Trial], None]

TITLES = {
    0: "what is declared is true",
    1: "shape, dtype and device are as declared",
    2: "equals the reference",
    3: "gradients are right",
    4: "no gradient from later tokens",
    5: "later tokens change nothing",
    6: "the receptive field is the declared one",
    7: "padding changes nothing",
    8: "what sees nothing gives 0",
    9: "a row does not know its batch",
    10: "step by step equals all at once",
    11: "the state is as declared, and can be moved",
    12: "packed documents equal separate ones",
    13: "every length, and none",
    14: "any layout; inputs are left alone",
    15: "reruns are bit-equal and draw nothing",
    16: "order is known as declared",
    17: "positions shift and slice as declared",
    18: "compiles as declared",
    19: "runs in ONNX Runtime alike",
    20: "weights survive a trip",
    21: "built late equals built directly",
    22: "half precision is as good as the reference's",
    23: "cost grows as declared",
    24: "checkpointing and autocast agree, all is trained",
    26: "norms and feedforwards do what they are for",
    27: "objectives ask for the right thing and add up",
    29: "data is read alike every time",
}


@dataclass(frozen=True)
class Row:
    """One check of a row.

    `places`: from a component's choices of options to the subjects that it runs on. `profile`: "quick" runs in both
    profiles. `excuse`: why the row does not apply to a class, as it declares; empty where it does.
    """

    number: int
    title: str
    kinds: tuple[str, ...]
    check: Check
    places: Places
    profile: Profile
    excuse: Excuse

    @property
    def name(self) -> str:
        """Return the name of the function, by which the check is told from the others of its number."""
        return self.check.__name__

    def subjects(self, cls: type[Any], profile: Profile) -> list[Subject]:
        """Return what of a component class the row runs on."""
        return list(self.places(cases_of(cls, profile == "full")))


ROWS: list[Row] = []


def _always(cls: type[Any]) -> str:
    return ""


def row(
    number: int,
    title: str,
    *,
    kinds: tuple[str, ...],
    places: Places = everywhere,
    profile: Profile = "quick",
    excuse: Excuse = _always,
) -> Callable[[Check], Check]:
    """Register a function of a subject and a trial as a check of row `number`."""

    def register(check: Check) -> Check:
        ROWS.append(Row(number, title, kinds, check, places, profile, excuse))
        return check

    return register


def unless_able(*abilities: str) -> Excuse:
    """Excuse an attention from a row whose ability it does not have, with the reason that it declares."""

    def excuse(cls: type[Any]) -> str:
        for ability in abilities:
            if ability not in cls.declares.can:
                return f"{ability}: {cls.declares.lacks.get(ability, 'of no effect on it')}"
        return ""

    return excuse


def rows_of(cls: type[Any], numbers: Iterable[int] = ()) -> list[Row]:
    """Return the rows of a component class's kind, in the order of their numbers; all, or those of some numbers."""
    from . import rows

    rows.load()
    wanted = set(numbers) or set(TITLES)
    found = [each for each in ROWS if cls.kind in each.kinds and each.number in wanted]
    return sorted(found, key=lambda each: each.number)
