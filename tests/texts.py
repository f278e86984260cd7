"""Texts to train on, for tests that ask nothing of them."""

from __future__ import annotations

from pathlib import Path


def write_texts(folder: Path) -> None:
    """Write sixteen short documents below `folder`, as `text`."""
    (folder / "text").mkdir()
    for number in range(16):
        (folder / "text" / f"{number}.txt").write_text(f"{number} and {number + 1} make {2 * number + 1}. " * 4)
