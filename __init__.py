"""Compose transformers from a spec, train them, compare them and ship them to ONNX."""

from __future__ import annotations

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transom.deploy import Runtime, export
    from transom.errors import (
        CheckpointError,
        DataError,
        ExportError,
        InputError,
        PluginError,
        SpecError,
        TrainingError,
        TransomError,
        TransomWarning,
    )
    from transom.interop import export_checkpoint, import_checkpoint, import_run
    from transom.registry.compose import compose
    from transom.registry.spec import load_spec
    from transom.training import load, train

__version__ = "0.1.0"

# Where each public name lives. They are imported when first asked for, so that `import transom` costs next to nothing.
_HOMES = {
    "CheckpointError": "errors",
    "DataError": "errors",
    "ExportError": "errors",
    "InputError": "errors",
    "PluginError": "errors",
    "Runtime": "deploy",
    "SpecError": "errors",
    "TrainingError": "errors",
    "TransomError": "errors",
    "TransomWarning": "errors",
    "compose": "registry.compose",
    "export": "deploy",
    "export_checkpoint": "interop",
    "import_checkpoint": "interop",
    "import_run": "interop",
    "load": "training",
    "load_spec": "registry.spec",
    "train": "training",
}

__all__ = [
    "CheckpointError",
    "DataError",
    "ExportError",
    "InputError",
    "PluginError",
    "Runtime",
    "SpecError",
    "TrainingError",
    "TransomError",
    "TransomWarning",
    "compose",
    "export",
    "export_checkpoint",
    "import_checkpoint",
    "import_run",
    "load",
    "load_spec",
    "train",
]


if not TYPE_CHECKING:  # A type checker that saw this would take any name for a public one.

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'transom' has no attribute {name!r}")
        # What is imported stays: looking for garbage among it, again and again, takes an eighth of the time.
        was = gc.isenabled()
        gc.disable()
        try:
            # By its full name: pytest imports this file under the checkout's folder name.
            value = getattr(import_module(f"transom.{_HOMES[name]}"), name)
        finally:
            if was:
                gc.enable()
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
