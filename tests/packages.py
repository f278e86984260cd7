"""A package of components that does nothing wrong, for tests that put faulty ones beside it."""

from __future__ import annotations

GOOD = """
from dataclasses import dataclass
from transom.core.component import Component

TRANSOM_API = 1

class RingAttention(Component):
    kind = "attention"
    @dataclass(frozen=True, kw_only=True)
    class Config:
        size: int = 2

def transom_components():
    return [RingAttention]
"""
