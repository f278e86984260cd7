"""Try to load one package of components in a process of its own, so that no package can harm another or the caller."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from ..errors import PluginError

LIMIT = 300  # seconds that a package may take to load


def load_apart(package: str) -> list[str]:
    """Return the components of an installed package, each as "kind name", after loading it in a child process.

    Raise `PluginError` with what went wrong where it can't be loaded.
    """
    command = [sys.executable, "-m", __name__, package]
    environment = {**os.environ, "TRANSOM_PLUGINS": package}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PluginError(f"package '{package}' was still loading after {LIMIT} s") from None
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
    from ..core.component import KINDS
    from ..registry.manager import BUILT_IN, names

    try:
        found = [(kind, name) for kind in KINDS for name in names(kind, everything=True)]
        # A name without a package is a built-in's.
        mine = [(kind, name) for kind, name in found if (name.rpartition("/")[0] or BUILT_IN) == package]
        answer = {"components": [f"{kind} {name}" for kind, name in mine]}
    except PluginError as error:
        answer = {"error": [str(error)]}
    print("\n\n" + json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
