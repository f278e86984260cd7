"""The hook through which a package gives its components to Transom."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from ..core.component import Component

hookspec = pluggy.HookspecMarker("transom")
hookimpl = pluggy.HookimplMarker("transom")


@hookspec
def transom_components() -> Iterable[type[Component]]:
    """Return the package's component classes."""
    return ()
