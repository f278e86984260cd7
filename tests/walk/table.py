"""The table of combinations, `docs/combinations.md`, from what became of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from walk.combinations import CROSS, Combination

Outcome = float | str | None
"""The largest error of an export's parity report, or why a combination is refused; None for one not walked yet."""

HEAD = """\
# Combinations

Every attention with every position, norm and topology that Transom brings: {rows} combinations, of which {composed}
compose and {refused} are refused. What composes trained for three steps (the loss fell, every parameter had a
gradient), decoded in fp64 token by token what it gave for the whole, where its topology generates, and was exported
alone: its cell holds the largest error of its parity report, relative to the largest magnitude, over all norms
({norms}). What is refused is refused before anything is built, for the reason whose number its cell holds. A cell
without an error composes, and was not walked yet: so are {unknown}.

Written by `make walk`, with {versions}.
"""


def write_table(outcomes: Mapping[Combination, Outcome], versions: Mapping[str, str]) -> str:
    """Return the page as Markdown, a table for each topology and place; `outcomes` are in the order of the walk."""
    reasons = list(dict.fromkeys(outcome for outcome in outcomes.values() if isinstance(outcome, str)))
    refused = sum(isinstance(outcome, str) for outcome in outcomes.values())
    head = HEAD.format(
        rows=len(outcomes),
        composed=len(outcomes) - refused,
        refused=refused,
        unknown=sum(outcome is None for outcome in outcomes.values()) or "none",
        norms=", ".join(f"`{name}`" for name in _unique(outcomes, "norm")),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )
    sections = [_section(topology, place, outcomes, reasons) for topology, place in _tables(outcomes)]
    numbered = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return "\n".join([head, *sections, f"## Reasons\n\n{numbered}\n"])


def _section(topology: str, place: str, outcomes: Mapping[Combination, Outcome], reasons: Sequence[str]) -> str:
    """Return one table: a row for each attention, a column for each position."""
    mine = {row: outcome for row, outcome in outcomes.items() if (row.topology, row.place) == (topology, place)}
    positions = _unique(mine, "position")
    lines = [f"| attention | {' | '.join(positions)} |", "|---" * (len(positions) + 1) + "|"]
    for attention in _unique(mine, "attention"):
        cells = []
        for position in positions:
            norms = {row.norm: o for row, o in mine.items() if (row.attention, row.position) == (attention, position)}
            cells.append(_cell(norms, reasons))
        lines.append(f"| {attention} | {' | '.join(cells)} |")
    title = f"## {topology}, across the memory" if place == CROSS else f"## {topology}"
    return f"{title}\n\n" + "\n".join(lines) + "\n"


def _cell(norms: Mapping[str, Outcome], reasons: Sequence[str]) -> str:
    """Return what became of one attention with one position: once for all norms where they agree, else for each."""
    texts = {norm: _text(outcome, reasons) for norm, outcome in norms.items()}
    errors = [outcome for outcome in norms.values() if isinstance(outcome, float)]
    if errors and not any(isinstance(outcome, str) for outcome in norms.values()):
        return f"ok, {max(errors):.0e}"
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{norm}: {text}" for norm, text in texts.items())


def _text(outcome: Outcome, reasons: Sequence[str]) -> str:
    """Return what became of one combination."""
    if isinstance(outcome, str):
        return f"refused ({reasons.index(outcome) + 1})"
    return "ok" if outcome is None else f"ok, {outcome:.0e}"


def _tables(outcomes: Mapping[Combination, Outcome]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.topology, row.place) for row in outcomes))


def _unique(outcomes: Mapping[Combination, Outcome], field: str) -> list[str]:
    return list(dict.fromkeys(getattr(row, field) for row in outcomes))
