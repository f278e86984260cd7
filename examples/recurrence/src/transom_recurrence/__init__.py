"""The recurrence of Griffin for Transom: `attention: {kind: griffin/rg_lru}`."""

from .rg_lru import RgLruAttention

TRANSOM_API = 1


def transom_components() -> list[type[RgLruAttention]]:
    """Give Transom the components of this package."""
    return [RgLruAttention]
