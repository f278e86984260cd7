"""Prove that a component is right: the rows of docs/conformance.md, over anybody's component."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .report import Outcome, Report
    from .runner import check
    from .trial import Failure

__all__ = ["Failure", "Outcome", "Report", "check"]

# Imported when first asked for: pytest loads this package in every run, and most need neither torch nor the rows.
_HOMES = {"Failure": "trial", "Outcome": "report", "Report": "report", "check": "runner"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
