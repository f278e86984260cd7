"""What every component must prove: the rows of docs/conformance.md, a file for each concern."""

from __future__ import annotations

from importlib import import_module

FILES = (
    "declared",
    "values",
    "precision",
    "visibility",
    "state",
    "lengths",
    "kinds",
    "build",
    "compile",
    "cost",
    "export",
    "models",
    "objectives",
    "data",
)


def load() -> None:
    """Register every row."""
    for name in FILES:
        import_module(f".{name}", __name__)
