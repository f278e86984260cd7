"""What is allocated while large pages are asked for is what it was."""

from __future__ import annotations

import ctypes
import mmap
import random
import re
from pathlib import Path

import pytest

from transom.deploy import pages


def large_kib() -> int:
    """Return how much of this process's memory is in large pages."""
    found = re.search(r"^AnonHugePages: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), flags=re.MULTILINE)
    assert found
    return int(found[1])


def test_what_is_filled_is_in_large_pages_where_the_system_has_them_and_keeps_its_bytes() -> None:
    probe = mmap.mmap(-1, 8 * pages.LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    probe.write(bytes(8 * pages.LARGE))
    at = -(-ctypes.addressof(ctypes.c_char.from_buffer(probe)) // pages.LARGE) * pages.LARGE
    library = ctypes.CDLL(None)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    can = library.madvise(at, 4 * pages.LARGE, pages.COLLAPSE) == 0
    before, filling = large_kib(), random.Random(7).randbytes(1 << 10) * 40_000
    with pages.large_pages():
        made = bytearray(filling)
    assert made == filling
    assert (large_kib() - before > 30_000) == can


def test_elsewhere_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pages, "MAPS", tmp_path / "maps")
    before = large_kib()
    with pages.large_pages():
        made = bytearray(b"7") * 40_000_000
    assert made.count(b"7") == len(made)
    assert large_kib() == before
