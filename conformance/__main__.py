"""Prove components and write the worst figures as a table into a page: `python -m transom.conformance transom`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .report import Outcome, Report, markdown, merged, versions
from .runner import check

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main(arguments: list[str] | None = None) -> int:
    """Prove what is named, print the table or write it between the marks of a page; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m transom.conformance", description=__doc__)
    parser.add_argument("names", nargs="+", help="components or packages; transom is the built-in one")
    parser.add_argument("--full", action="store_true", help="try every option")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the worst figures into this page, between its marks")
    given = parser.parse_args(arguments)

    def shown(outcome: Outcome) -> None:
        if outcome.status == "failed":
            print(outcome, file=sys.stderr, flush=True)

    profile = "full" if given.full else "quick"
    report = merged(check(name, profile=profile, seed=given.seed, each=shown) for name in given.names)  # type: ignore[arg-type]
    if given.markdown is None:
        print(report.table())
    else:
        write(given.markdown, report, f"python -m transom.conformance {' '.join(given.names)} --{profile}")
    return 0 if report.passed else 1


def write(page: Path, report: Report, command: str) -> None:
    """Put the table of a report between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    made = ", ".join(f"{name} {number}" for name, number in versions().items())
    text = f"`{command}` ({made}), {len(report.outcomes):,} checks:\n\n{markdown(report)}"
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
