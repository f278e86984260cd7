"""What installed packages cost that nobody names: importing Transom and listing fifty of them, against none."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROUNDS, PACKAGES, ALLOWED = 9, 50, 1.3
# The last line tells of the packages' modules: none may be there.
CODE = """
import sys, transom
from transom.cli import main
try:
    main(["plugins"])
finally:
    sys.stderr.write(",".join(name for name in sys.modules if name.startswith("many_")))
"""


def install(folder: Path) -> None:
    """Lay down packages as pip would: a module, and the metadata that names its entry point."""
    for number in range(PACKAGES):
        (folder / f"many_{number}.py").write_text("raise RuntimeError('imported, though nobody named it')\n")
        metadata = folder / f"many_{number}-1.{number}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: many-{number}\nVersion: 1.{number}\n")
        (metadata / "entry_points.txt").write_text(f"[transom]\nmany{number} = many_{number}\n")


def spent(folder: Path, packages: int) -> float:
    """List the packages in a process that has those of a folder; return its processor seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", CODE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.read().count("\n") == packages + 1  # and Transom itself
        assert process.stderr.read() == ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return float(usage.ru_utime + usage.ru_stime)


@pytest.mark.timeout(300)
def test_packages(benchmark: Any, tmp_path: Path) -> None:
    """In turns, by the ratio of the medians."""
    none, many = tmp_path / "none", tmp_path / "many"
    for folder in (none, many):
        folder.mkdir()
    install(many)
    spent(none, 0), spent(many, PACKAGES)  # what is compiled to bytecode is so now
    pairs = [(spent(many, PACKAGES), spent(none, 0)) for _ in range(ROUNDS)]
    with_them, without = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    ratio = with_them / without
    benchmark.extra_info |= {"ratio": ratio, "seconds": with_them, "without": without, "allowed": ALLOWED}
    benchmark.pedantic(spent, (many, PACKAGES), rounds=1)
    print(f"\n{PACKAGES} packages: {ratio:.2f} of none ({with_them:.3f} s against {without:.3f} s), allowed {ALLOWED}")
    assert ratio <= ALLOWED
