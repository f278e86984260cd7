"""The command `transom plugins check`: prove a component, or all of a package, and print what came out."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .output import notes


def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A component (local, acme/ring), or a package (acme, transom).")
    ],
    full: Annotated[bool, typer.Option("--full", help="Try every option: minutes in place of seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every outcome as JSON.")] = False,
    badge: Annotated[bool, typer.Option("--badge", help="Print a Markdown table for a README.")] = False,
    row: Annotated[list[int] | None, typer.Option(metavar="N", help="Run this row; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="The seed of all that is drawn.")] = 0,
) -> None:
    """Prove that a component is right, by the rows of the conformance suite.

    It prints one line for each row with the worst figure, then each failure with the smallest input that shows it.
    """
    from ..conformance import check as prove

    told = notes()
    with told.status(f"proving {name}") as status:
        report = prove(
            name,
            profile="full" if full else "quick",
            rows=row or (),
            seed=seed,
            each=lambda outcome: status.update(f"{outcome.component} row {outcome.number}: {outcome.title}"),
        )
    if as_json:
        print(json.dumps(report.as_json(), indent=2))
    elif badge:
        print(report.badge())
    else:
        print(report.table())
    for failure in report.failures:
        told.print(str(failure))
    if not report.passed:
        raise typer.Exit(1)
