"""What the suite leaves to the long walks, of rows of the conformance suite: what takes long and is much alike."""

from __future__ import annotations

import zlib
from typing import Any

# Rows that compile or export: seconds for each component, where others take a tenth of one.
COMPILES, EXPORTS = 18, 19
STACKED = ("attention", "position", "norm")  # test_combinations exports all of these, in stacks of all
EVERY = 3


def left_out(proof: Any, together: bool) -> bool:
    """Say whether a row of one component at one place is left out of the quick profile.

    That is most rows that compile, and exports of what else is exported in stacks. `together`: all components are
    proven, so that a pair of an attention and a position, a row of either, comes again as the position's.
    """
    cls, beside = proof.cls, proof.subject.beside
    if proof.row.number == COMPILES:
        return zlib.crc32(cls.__name__.encode()) % EVERY != 0
    if proof.row.number == EXPORTS:
        return cls.kind in STACKED
    return together and cls.kind == "attention" and beside is not None and beside.cls.kind == "position"
