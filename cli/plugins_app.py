"""The commands about packages that bring components: what is installed, and what each of them brings."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import PluginError
from .checking import check
from .scaffolding import new

plugins = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
plugins.command()(check)
plugins.command()(new)

plugins.command()(check)
plugins.command()(new)


@plugins.callback(invoke_without_command=True)
def listed(
    context: typer.Context,
    load: Annotated[bool, typer.Option("--load", help="Try each, in a process of its own; say what it gives.")] = False,
) -> None:
    """List the packages that bring components.

    The list comes from their metadata: none is imported unless asked for.
    """
    if context.invoked_subcommand is not None:
        return
    from ..registry.manager import installed
    from .packages import load_apart
    from .render import package

    failed = False
    for found in installed():
        print(package(found), flush=True)
        if load and found.allowed:
            try:
                print(*load_apart(found.name), sep="\n")
            except PluginError as error:
                failed = True
                print("  does not load", flush=True)
                print(error, file=sys.stderr)
    if failed:
        raise typer.Exit(1)
