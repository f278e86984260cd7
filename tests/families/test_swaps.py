"""A family with another part trains, or is refused with the reason: a slice of the walk of `make families`."""

from __future__ import annotations

import pytest
from swaps import KINDS, Swap, swaps, tried

from transom.registry.manager import default
from transom.registry.sources import families


def slices() -> list[Swap]:
    """Return one swap of each kind for each family: over all families, each part has its turn."""
    names = {kind: sorted(default().names(kind)) for kind in KINDS}
    return [
        Swap(f, kind, names[kind][place % len(names[kind])]) for place, f in enumerate(families()) for kind in KINDS
    ]


SLICE = slices()
OTHERS = [pytest.param(swap, marks=pytest.mark.long) for swap in swaps() if swap not in SLICE]


@pytest.mark.parametrize("swap", [*SLICE, *OTHERS], ids=str)
def test_a_swapped_family_trains_or_says_why_not(swap: Swap) -> None:
    reason = tried(swap)
    assert reason is None or "model." in reason, reason
