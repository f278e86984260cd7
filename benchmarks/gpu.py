"""All that needs a CUDA machine, in one run of some minutes: what is right, what it takes, and one table last.

    python benchmarks/gpu.py [--markdown docs/gpu.md] [PART ...]

Peers that are not installed (transformers, flash-linear-attention) are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from cuda_attention import check_right, measure_attention, measure_layers
from cuda_timing import Table, limit_tuning
from cuda_training import (
    PEAK,
    measure_compiled,
    measure_decoding,
    measure_dense,
    measure_limits,
    measure_loss,
    measure_settings,
)

TUNED = 6
"""Settings that a kernel which tunes itself tries; flash-linear-attention's have up to 48."""


def versions() -> str:
    """Return the device and what ran on it."""
    found = []
    for name in ("torch", "triton", "transformers", "fla-core", "torchao", "transom"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, {', '.join(found)}"


def ran(table: Table, name: str, part: Callable[[], None]) -> bool:
    """Run a part and say whether it got to its end; what it fails with is a row, and costs no other part."""
    try:
        part()
    except Exception as error:
        traceback.print_exc()
        table.add(name, "FAILED", "", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        return False
    return True


def main() -> int:
    """Run every part; one that fails is a row of the table, and an exit code of 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--markdown", type=Path, help="a page to write the table to")
    parser.add_argument("parts", nargs="*", help="what to measure: all, unless named")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: PyTorch sees no CUDA device here", file=sys.stderr)
        return 2
    limit_tuning(TUNED)
    table, failed, start, rate = Table(), False, time.perf_counter(), PEAK

    def limits() -> None:
        nonlocal rate
        rate = measure_limits(table)

    parts = {
        "limits": limits, "loss": lambda: measure_loss(table), "decoding": lambda: measure_decoding(table),
        "dense": lambda: measure_dense(table, rate), "right": lambda: check_right(table),
        "attention": lambda: measure_attention(table), "layers": lambda: measure_layers(table),
        "compiled": lambda: measure_compiled(table), "settings": lambda: measure_settings(table),
    }  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))
    try:
        for name in asked.parts or parts:
            print(f"-- {name}, at {time.perf_counter() - start:.0f} s", flush=True)
            failed |= not ran(table, name, parts[name])
            torch.cuda.empty_cache()
    except SystemExit:
        table.add("all else", "not measured", "", "the run was stopped")
    print(f"-- done, at {time.perf_counter() - start:.0f} s\n\n{versions()}\n\n{table}")
    if asked.markdown is not None:
        page = f"# On a CUDA machine\n\n`python benchmarks/gpu.py --markdown docs/gpu.md`: {versions()}.\n\n{table}"
        asked.markdown.write_text(page)
    return int(failed or any(row[2] == "WRONG" for row in table.rows))


if __name__ == "__main__":
    sys.exit(main())
