"""What a run was made by: packages and their versions, kept in its folder, and held against what is installed here."""

from __future__ import annotations

import json
import platform
import warnings
from importlib.metadata import version
from pathlib import Path

from ..errors import CheckpointError, PluginError, TransomWarning
from .manager import installed
from .spec import Spec

MADE_BY = "made_by.json"


def made_by(spec: Spec) -> dict[str, str]:
    """Return what a spec's model is made by here: name -> distribution and version (`acme`: `acme-parts 1.2`).

    These are the packages that its parts come from, by their names in specs, then `transom`, `torch` and `python`.
    """
    return {**dict(sorted(spec.packages.items())), **_ours()}


def check_packages(folder: Path) -> None:
    """Raise PluginError where a package that made the run in `folder` is not installed; CheckpointError as `read` does.

    A run without a record passes: its spec names what it needs, if not the version.
    """
    others = {name: release for name, release in read(folder).items() if name not in _ours()}
    here = {item.name for item in installed()} if others else set()
    missing = [f"'{name}' ({release})" for name, release in others.items() if name not in here]
    if missing:
        raise PluginError(f"{folder}: was made with {_join(missing)}, which is not installed here: install it")


def warn_of_changes(folder: Path, spec: Spec) -> None:
    """Warn (`TransomWarning`) where the run in `folder` was made with other versions than those that are here."""
    before, here = read(folder), made_by(spec)
    changed = [name for name, release in before.items() if here.get(name, release) != release]
    if changed:
        then, now = (_join([versions[name] for name in changed]) for versions in (before, here))
        warnings.warn(f"{folder}: was made with {then}; here: {now}", TransomWarning, stacklevel=2)


def read(folder: Path) -> dict[str, str]:
    """Read what a run was made by, nothing where that was not kept; raise CheckpointError where it can't be read."""
    try:
        found = json.loads((folder / MADE_BY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / MADE_BY}: can't be read: {error}") from None
    if not (isinstance(found, dict) and all(isinstance(release, str) for release in found.values())):
        raise CheckpointError(f"{folder / MADE_BY}: is no map from packages to their versions")
    return found


def _ours() -> dict[str, str]:
    libraries = {name: f"{name} {version(name)}" for name in ("transom", "torch")}
    return {**libraries, "python": f"python {platform.python_version()}"}


def _join(items: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
