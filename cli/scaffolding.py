"""The command that makes a package for a component of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new(
    package: Annotated[
        str, typer.Argument(metavar="NAME", help="The package's name, as acme-ring; specs say NAME/COMPONENT.")
    ],
    kind: Annotated[
        str, typer.Option(help="attention, position, norm, feedforward, embedding, head, topology, objective or data.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="COMPONENT", help="The component's name; the last word of NAME unless given.")
    ] = None,
    mixer: Annotated[
        bool, typer.Option("--mixer", help="An attention that replaces all of it, with a state of fixed size.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="The package's folder; NAME unless given.")
    ] = None,
) -> None:
    """Make a package for a component of your own.

    What it holds works and passes `transom plugins check`: change it to what you have in mind.
    """
    from ..conformance.scaffold import scaffold

    print(scaffold(package, kind, out, name=name, mixer=mixer))
