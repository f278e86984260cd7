"""Ship a model as ONNX with its state and a report on where it agrees with PyTorch, and run it without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arrays import ArrayRuntime, generate
    from .checking import check
    from .export import export, export_settings
    from .report import Report
    from .runtime import Label, Runtime
    from .timing import Bench, bench

__all__ = [
    "ArrayRuntime",
    "Bench",
    "Label",
    "Report",
    "Runtime",
    "bench",
    "check",
    "export",
    "export_settings",
    "generate",
]

# Imported when first asked for: the runtime needs no torch, and whoever wants it alone should not pay for it.
_HOMES = {
    "Label": "runtime",
    "Report": "report",
    "Runtime": "runtime",
    "ArrayRuntime": "arrays",
    "Bench": "timing",
    "bench": "timing",
    "check": "checking",
    "export": "export",
    "export_settings": "export",
    "generate": "arrays",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
