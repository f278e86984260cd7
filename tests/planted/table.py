"""The table of planted faults, `docs/planted.md`, from what caught each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from planted.fault import Caught

HEAD = """\
# Planted faults

A suite that has never failed proves nothing. These are {count} components with one mistake each, of the sort that an
author makes, and the rows of the [conformance suite](conformance.md) that catch them: {caught} of {count}, {share:.1%}.
Each is derived from a component that is right (a built-in one, or a small one beside the faults) and differs from it
by its mistake alone; the tests check that the sound one passes where the faulty one fails. What no row catches stands
here as such.

The smallest input is that of the first row in **bold**, found as the suite finds it when it reports a failure. A row
that is listed fails for at least one choice of options at one place.

Written by `make planted` (`PYTHONPATH=tests python -m planted`: every row of the full profile), with {versions}.

| fault | kind | what is wrong | rows that catch it | smallest failing input |
|---|---|---|---|---|
"""
NONE = "none"
LINE = re.compile(r"^\| `(\w+)` \| (\w+) \| .* \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


def page(found: Sequence[Caught], versions: Mapping[str, str]) -> str:
    """Return the page as Markdown."""
    caught = sum(bool(each.rows) for each in found)
    head = HEAD.format(
        count=len(found),
        caught=caught,
        share=caught / len(found),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )
    return head + "".join(_line(each) + "\n" for each in found)


def _line(caught: Caught) -> str:
    fault = caught.fault
    rows = ", ".join(f"**{number}**" if number == caught.shown else str(number) for number in caught.rows)
    wrong = fault.wrong.replace("|", "\\|")
    return f"| `{fault.name}` | {fault.kind} | {wrong} | {rows or NONE} | {caught.smallest} |"


def read(text: str) -> dict[str, list[int]]:
    """Return the rows that catch each fault, by its name, as a page says."""
    return {name: [int(number) for number in re.findall(r"\d+", rows)] for name, _, rows, _ in LINE.findall(text)}
