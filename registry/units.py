"""Writes amounts for people: bytes and counts with three digits and a prefix."""

from __future__ import annotations

PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def size(count: float) -> str:
    """Return bytes as a text: `24.8 MB`."""
    return f"{scaled(count)}B"


def scaled(count: float) -> str:
    """Return a number of three digits and the prefix of its unit: `24.8 M`."""
    prefix = 0
    while count >= 999.5 and prefix < len(PREFIXES) - 1:
        count, prefix = count / 1000, prefix + 1
    digits = 0 if count >= 99.95 or not prefix else 1 if count >= 9.995 else 2
    return f"{count:.{digits}f} {PREFIXES[prefix]}"
