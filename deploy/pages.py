"""Large pages of memory for weights: a step that reads them all waits for as many fewer translations of addresses."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAPS = Path("/proc/self/maps")
LARGE = 1 << 21  # bytes of such a page
COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1: put what is there into large pages, now


@contextmanager
def large_pages() -> Iterator[None]:
    """Put what a block of code allocates, and fills, into large pages, where the system can; change nothing elsewhere.

    Of parts of memory of at least two such pages. What the block frees again costs nothing.
    """
    before = _private()
    yield
    if MAPS.exists():
        library = ctypes.CDLL(None)
        library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for first, end in _private() - before:
            first, end = -(-first // LARGE) * LARGE, end // LARGE * LARGE
            if end - first > LARGE:
                library.madvise(first, end - first, COLLAPSE)  # where it fails, pages stay as they are


def _private() -> set[tuple[int, int]]:
    """Return the parts of memory that can be written, and belong to no file."""
    if not MAPS.exists():
        return set()
    found = re.finditer(r"^(\w+)-(\w+) rw-p \S+ \S+ 0 *$", MAPS.read_text(), flags=re.MULTILINE)
    return {(int(line[1], 16), int(line[2], 16)) for line in found}
