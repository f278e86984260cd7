"""The command line: runs one command and turns whatever goes wrong into one message and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Any, NoReturn

from ..errors import TransomError, TransomWarning

INTERRUPTED = 130


@dataclass
class Session:
    """Hold what the options before the command ask for."""

    debug: bool = False


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command that `args` (those of the process by default) name, and end the process.

    The exit code is 0 when it is done, 1 when the work failed, 2 when the input is wrong, 130 after Ctrl-C.
    """
    session = Session()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A character that the terminal's encoding lacks is no reason to lose the rest.
            stream.reconfigure(errors="replace")
    try:
        # Only now, so that Ctrl-C while libraries load is as quiet as later.
        from .app import app

        with warnings.catch_warnings():
            warnings.simplefilter("always", TransomWarning)
            warnings.showwarning = noting(warnings.showwarning)
            app(args=args, prog_name="transom", obj=session)
        code: object = 0
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code = report(error, session.debug)
    if code == INTERRUPTED:
        print("transom: interrupted", file=sys.stderr)
    sys.exit(code if close_output() else 1)  # type: ignore[arg-type]


def report(error: Exception, debug: bool) -> int:
    """Print an error on standard error, with its traceback when `debug`, and return the exit code that it asks for."""
    if debug:
        import traceback

        traceback.print_exception(error)
        return error.exit_code if isinstance(error, TransomError) else 1
    if isinstance(error, TransomError):
        print(error, file=sys.stderr)
        return error.exit_code
    first = str(error).strip().partition("\n")[0]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    print(f"transom: {what} (run again with --debug to see where)", file=sys.stderr)
    return 1


def noting(show: Callable[..., None]) -> Callable[..., None]:
    """Return a way to show warnings: Transom's own as a line on standard error, all others by `show`."""

    def note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, TransomWarning):
            print(message, file=sys.stderr)
        else:
            show(message, category, *where, **more)

    return note


def close_output() -> bool:
    """Write out what standard output still holds; say whether its reader took it.

    A reader that has gone (`transom plugins | head -1`) or a full disk would otherwise show up as a traceback at exit.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
