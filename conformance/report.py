"""Say what came out: one outcome for each row and subject, a table of them, JSON, and a badge for a README."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import groupby
from typing import Any, Literal

Status = Literal["passed", "failed", "declared"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Hold what one check of a row found on one subject.

    `declared`: the row does not apply, `reason` says as what the component declares it. `figure` of `allowance`: the
    measurement nearest to its allowance, None where every check is exact. `exact`: how many exact checks held. `ties`:
    how many choices by content differed between what was compared, each a near tie.
    `smallest`: the smallest input that still fails the same way, as `batch 1, length 6, window 5`.
    """

    component: str
    kind: str
    number: int
    title: str
    check: str
    subject: str
    status: Status
    reason: str = ""
    measured: str = ""
    figure: float | None = None
    allowance: float | None = None
    exact: int = 0
    ties: int = 0
    seconds: float = 0.0
    smallest: str = ""

    @property
    def share(self) -> float:
        """Return how much of its allowance the figure uses; 0 where every check is exact."""
        return self.figure / self.allowance if self.figure is not None and self.allowance else 0.0

    def __str__(self) -> str:
        where = f"{self.component} row {self.number} ({self.title}) [{self.subject}]"
        first = f"\n  fails first at {self.smallest}" if self.smallest else ""
        return f"{where}: {self.reason or self.status}{first}"


@dataclass(frozen=True)
class Line:
    """Sum up the outcomes of one row of one component."""

    component: str
    kind: str
    number: int
    title: str
    outcomes: Sequence[Outcome] = field(repr=False)

    @property
    def status(self) -> Status:
        """Return failed where one subject did, declared where the row applies to none, else passed."""
        statuses = {outcome.status for outcome in self.outcomes}
        return "failed" if "failed" in statuses else "passed" if "passed" in statuses else "declared"

    @property
    def worst(self) -> Outcome | None:
        """Return the outcome whose figure is nearest to its allowance; None where every check is exact."""
        measured = [outcome for outcome in self.outcomes if outcome.figure is not None]
        return max(measured, key=lambda outcome: outcome.share, default=None)

    @property
    def figure(self) -> str:
        """Return the worst figure with what is allowed, the number of exact checks, or why the row does not apply."""
        if self.status == "declared":
            return "; ".join(dict.fromkeys(outcome.reason for outcome in self.outcomes))
        if self.worst is None:
            return f"{sum(outcome.exact for outcome in self.outcomes):,} exact"
        ties = sum(outcome.ties for outcome in self.outcomes)
        beside = f", {ties:,} near ties" if ties else ""
        return f"{number(self.worst.figure or 0.0)} of {self.worst.allowance:.2g}{beside}"

    @property
    def subjects(self) -> int:
        """Return on how many subjects it was checked."""
        return sum(outcome.status != "declared" for outcome in self.outcomes)


@dataclass(frozen=True)
class Report:
    """Hold every outcome of a check; `profile` and `seed` are what it ran with."""

    outcomes: tuple[Outcome, ...]
    titles: dict[int, str] = field(repr=False)
    profile: str = "quick"
    seed: int = 0

    @property
    def passed(self) -> bool:
        """Say whether something was checked and nothing failed."""
        return bool(self.outcomes) and not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Return the outcomes that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    def lines(self) -> Iterator[Line]:
        """Yield one line for each component and row."""

        def key(outcome: Outcome) -> tuple[str, str, int]:
            return outcome.kind, outcome.component, outcome.number

        for (kind, component, number), found in groupby(sorted(self.outcomes, key=key), key):
            yield Line(component, kind, number, self.titles[number], tuple(found))

    def table(self) -> str:
        """Return the lines as text: component, row, what it is about, status, worst figure, number of subjects."""
        rows = [
            (line.component, f"{line.number}", line.title, line.status, line.figure, f"{line.subjects}")
            for line in self.lines()
        ]
        return aligned([("component", "row", "what holds", "", "worst figure", "subjects"), *rows])

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold."""
        return {
            "passed": self.passed,
            "profile": self.profile,
            "seed": self.seed,
            "versions": versions(),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }

    def badge(self) -> str:
        """Return a small Markdown table for a README: a line for each component."""
        made = ", ".join(f"{name} {number}" for name, number in versions().items() if name != "machine")
        head = [
            f"| component | rows passed | checks | nearest to its limit | ({self.profile} profile, {made}) |",
            "|---|---|---|---|---|",
        ]
        return "\n".join([*head, *(self._badge(name, kind) for name, kind in self.components())])

    def components(self) -> list[tuple[str, str]]:
        """Return the name and kind of each component, in the order in which they were checked."""
        return list(dict.fromkeys((outcome.component, outcome.kind) for outcome in self.outcomes))

    def _badge(self, name: str, kind: str) -> str:
        lines = [line for line in self.lines() if (line.component, line.kind) == (name, kind)]
        applied = [line for line in lines if line.status != "declared"]
        good = sum(line.status == "passed" for line in applied)
        outcomes = [outcome for line in applied for outcome in line.outcomes]
        worst = max(outcomes, key=lambda outcome: outcome.share)
        near = f"row {worst.number}: {worst.share:.0%}" if worst.share else "all exact"
        lacks = "; ".join(f"row {line.number}: {line.figure}" for line in lines if line.status == "declared")
        return f"| `{name}` ({kind}) | {good} of {len(applied)} | {len(outcomes)} | {near} | {lacks} |"


def versions() -> dict[str, str]:
    """Return what a report was made with."""
    found = {name: version(name) for name in ("transom", "torch")}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text in columns of equal width."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown(report: Report) -> str:
    """Return for each kind a table of its components' worst figures, row by row, for a page."""
    lines = {(line.kind, line.component, line.number): line for line in report.lines()}
    tables = []
    for kind in dict.fromkeys(kind for _, kind in report.components()):
        numbers = sorted({number for its, _, number in lines if its == kind})
        rows = [[kind, *map(str, numbers)], ["---"] * (len(numbers) + 1)]
        for name in [name for name, its in report.components() if its == kind]:
            rows.append([f"`{name}`", *(_cell(lines[kind, name, number]) for number in numbers)])
        tables.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(tables)


def _cell(line: Line) -> str:
    """Return what a page says of one row of one component."""
    if line.status == "declared":
        return "-"
    if line.status == "failed":
        return "**fails**"
    return "=" if line.worst is None else number(line.worst.figure or 0.0)


def number(figure: float) -> str:
    """Return a figure with two digits."""
    return f"{figure:.2g}"


def merged(reports: Iterable[Report]) -> Report:
    """Return several reports as one."""
    found = list(reports)
    outcomes = tuple(outcome for report in found for outcome in report.outcomes)
    return Report(outcomes, found[0].titles, found[0].profile, found[0].seed)
