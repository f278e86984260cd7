"""The contracts of the nine kinds of component, and the skeleton that wires them into a model.

What an author of components needs is importable from here; the types of one contract hang on it (`Embedding.Input`,
`Objective.Loss`, `Data.Example`, `Topology.Graph`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention import Declaration, Mechanism, Mixer
    from .component import Site
    from .context import Context
    from .data import Data
    from .embedding import Embedding
    from .feedforward import FeedForward
    from .head import Head
    from .heads import HeadsConfig
    from .linear import Linear
    from .norm import Norm
    from .objective import Objective
    from .position import Position
    from .softmax import softmax_attention, softmax_reference
    from .state import Remembered
    from .tokens import Tokens
    from .topology import Topology

# Where each name lives. They are imported when first asked for: half of the rooms import `core` and never torch.
_HOMES = {
    "Context": "context",
    "Data": "data",
    "Declaration": "attention",
    "Embedding": "embedding",
    "FeedForward": "feedforward",
    "Head": "head",
    "HeadsConfig": "heads",
    "Linear": "linear",
    "Mechanism": "attention",
    "Mixer": "attention",
    "Norm": "norm",
    "Objective": "objective",
    "Position": "position",
    "Remembered": "state",
    "Site": "component",
    "Tokens": "tokens",
    "Topology": "topology",
    "softmax_attention": "softmax",
    "softmax_reference": "softmax",
}

__all__ = [
    "Context",
    "Data",
    "Declaration",
    "Embedding",
    "FeedForward",
    "Head",
    "HeadsConfig",
    "Linear",
    "Mechanism",
    "Mixer",
    "Norm",
    "Objective",
    "Position",
    "Remembered",
    "Site",
    "Tokens",
    "Topology",
    "softmax_attention",
    "softmax_reference",
]


if not TYPE_CHECKING:  # A type checker that saw this would take any name for a public one.

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
