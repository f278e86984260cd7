"""Where the command line writes: results to standard output, progress and notes to standard error."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console

# A pipe or a file gets every line whole, whatever the terminal beside it is.
PLAIN_WIDTH = 10_000


def console(stream: TextIO) -> Console:
    """Return a console that takes text as it is: no markup or emoji, no guessed colours, whole lines off a terminal."""
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def results() -> Console:
    """Return the console for what a command was asked for."""
    return console(sys.stdout)


def notes() -> Console:
    """Return the console for progress and everything else that a person may want to know meanwhile."""
    return console(sys.stderr)
