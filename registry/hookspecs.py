"""The hook through which a package gives its components to Transom, and how a package's hooks are found."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable

import pluggy

from ..core.component import Component
from .containment import Refusal
from .marks import nearest

PROJECT = "transom"
PREFIX = "transom_"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def transom_components() -> Iterable[type[Component]]:
    """Return the package's component classes."""
    return ()


class Hooks(pluggy.PluginManager):
    """Know the hooks, and take a package's functions with their names for implementations, decorated or not."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(sys.modules[__name__])

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        """Return how a package's attribute implements a hook; None where it is none.

        Raises:
            Refusal: it is a function that is named like a hook, and no hook has that name.
        """
        marked = super().parse_hookimpl_opts(plugin, name)
        if marked is not None or not name.startswith(PREFIX) or not inspect.isroutine(getattr(plugin, name)):
            return marked
        known = [own for own in globals() if own.startswith(PREFIX)]
        if name not in known:
            raise Refusal(f"has a function {name}, and there is no such hook{nearest(name, known)}")
        return pluggy.HookimplOpts(
            wrapper=False, hookwrapper=False, optionalhook=False, tryfirst=False, trylast=False, specname=None
        )
