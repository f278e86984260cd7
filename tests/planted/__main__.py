"""Run every row on every planted fault, and write which catches which: `python -m planted`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from planted import FAULTS
from planted.fault import searched
from planted.table import page
from transom.conformance.report import versions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "planted.md"


def main() -> None:
    """Search all faults, one after another, and write the page."""
    torch.set_num_threads(1)
    began, found = time.monotonic(), []
    for count, fault in enumerate(FAULTS.values(), 1):
        found.append(searched(fault))
        minutes = (time.monotonic() - began) / 60
        print(f"[{count}/{len(FAULTS)}, {minutes:.0f} min] {found[-1]}", file=sys.stderr, flush=True)
    PAGE.write_text(page(found, versions()), encoding="utf-8")


if __name__ == "__main__":
    main()
