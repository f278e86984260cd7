"""Differential attention for Transom: `attention: {kind: differential/pairs, ...}`."""

from .pairs import PairsAttention

TRANSOM_API = 1


def transom_components() -> list[type[PairsAttention]]:
    """Give Transom the components of this package."""
    return [PairsAttention]
