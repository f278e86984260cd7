"""Try to load one package of components in a process of its own, so that no package can harm another or the caller."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from ..errors import PluginError

SPARE = 120  # seconds for Python and torch to start, and for a package that can't be stopped from within


def load_apart(package: str) -> list[str]:
    """Return lines on the components of an installed package, after loading it in a child process.

    Each has its kind and name, and below them what it declares. Raise `PluginError` with what went wrong where the
    package can't be loaded.
    """
    from ..registry.containment import seconds

    limit = seconds() + SPARE
    command = [sys.executable, "-m", __name__, package]
    environment = {**os.environ, "TRANSOM_PLUGINS": package}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PluginError(f"package '{package}' was still loading after {limit:g} s") from None
    # The last line: a package may print while it loads, or end the process in its own way.
    try:
        answer: dict[str, list[str]] = json.loads(done.stdout.rpartition("\n\n")[2])
    except ValueError:
        how = f"exit code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
        raise PluginError(f"package '{package}' ended Python with {how} while loading") from None
    if "error" in answer:
        raise PluginError(*answer["error"])
    return answer["components"]


def main(package: str) -> None:
    """Load a package here, in the child, and print as JSON, after an empty line, its components or what went wrong."""
    from ..registry.declared import declared
    from ..registry.manager import default

    try:
        lines = list[str]()
        for cls in default().components(package):
            lines += [f"  {cls.kind} {cls.name}", *(f"    {line}" for line in declared(cls))]
        answer = {"components": lines}
    except PluginError as error:
        answer = {"error": [str(error)]}
    print("\n\n" + json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
