"""What a report must keep to: limits by measure, as `--gate` gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import InputError
from .report import Figures, Report, Row

Limits = Mapping[str, float]


@dataclass(frozen=True)
class Measure:
    """Describe a measure: how to read it of a row and of figures, None where they have none.

    `least`: whether its limit is the least that passes, else the most.
    """

    row: Callable[[Row], float | None]
    figures: Callable[[Figures], float | None]
    least: bool = False

    def passes(self, value: float, limit: float) -> bool:
        """Say whether a value keeps to its limit; what is no number does not."""
        return value >= limit if self.least else value <= limit


def _none(_: object) -> None:
    return None


def _sure(same: float | None, ambiguous: float | None) -> float | None:
    """Return the share of the same choices where there is no near tie."""
    if same is None or ambiguous is None:
        return None
    return same / (1 - ambiguous) if ambiguous < 1 else 1.0


def _lost(figures: Figures) -> float | None:
    known = figures.loss is not None and figures.exact_loss is not None
    return figures.loss - figures.exact_loss if known else None  # type: ignore[operator]


MEASURES: Mapping[str, Measure] = {
    "error": Measure(lambda row: row.error, lambda figures: figures.error),
    "rms": Measure(lambda row: row.rms, lambda figures: figures.rms),
    "argmax": Measure(
        lambda row: _sure(row.agreement, row.ambiguous), lambda each: _sure(each.same, each.ambiguous), least=True
    ),
    "ties": Measure(lambda row: row.ambiguous, lambda figures: figures.ambiguous),
    "kl": Measure(_none, lambda figures: figures.kl),
    "loss": Measure(_none, _lost),
}
SHARES = {"argmax", "ties"}


def limits(text: str) -> dict[str, float]:
    """Read limits as in `rms=1e-3,argmax=0.999`.

    Raises:
        InputError: a measure is unknown or comes twice, or its limit is no number that it could have.
    """
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, said = part.partition("=")
        where = f"gate: {part!r}"
        if name not in MEASURES:
            near = get_close_matches(name, MEASURES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"{where}: no measure {name!r}{hint}; there are {', '.join(MEASURES)}")
        try:
            limit = float(said)
        except ValueError:
            limit = math.nan
        most = 1.0 if name in SHARES else math.inf
        if name in found or not 0 <= limit <= most or math.isinf(limit):
            allowed = "from 0 to 1" if name in SHARES else "of at least 0"
            raise InputError(f"{where}: must be one number {allowed}, as in {name}=0.01")
        found[name] = limit
    return found


def failures(limits: Limits, report: Report) -> list[str]:
    """Return what of a report does not keep to limits, line by line; a limit on what nothing measures is not kept."""
    failed = []
    for name, limit in limits.items():
        measure, known = MEASURES[name], False
        for where, value in _values(measure, report):
            known = True
            if not measure.passes(value, limit):
                failed.append(
                    f"{where}: {name} {value:.6g}, allowed {'at least' if measure.least else 'at most'} {limit:g}"
                )
        if not known:
            failed.append(f"{name}: nothing here measures it{_why(report.figures)}")
    return failed


def _values(measure: Measure, report: Report) -> list[tuple[str, float]]:
    rows = [(f"{row.case} {row.precision} {row.provider}", measure.row(row)) for row in report.rows]
    figures = [(f"{each.precision} {each.provider} on {each.read}", measure.figures(each)) for each in report.figures]
    return [(where, value) for where, value in (*rows, *figures) if value is not None]


def _why(figures: Sequence[Figures]) -> str:
    return "".join(f" ({each.unknown})" for each in figures[:1] if each.unknown)
