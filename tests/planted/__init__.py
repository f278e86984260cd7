"""Components with one fault each: what the conformance suite is proven with."""

from __future__ import annotations

from importlib import import_module

from planted.fault import FAULTS, Fault

FILES = (
    "attention_sight",
    "attention_values",
    "attention_state",
    "attention_declared",
    "attention_choice",
    "position",
    "norm",
    "feedforward",
    "embedding",
    "head",
    "topology",
    "objective",
    "data",
)

for name in FILES:
    import_module(f"planted.{name}")

__all__ = ["FAULTS", "Fault"]
