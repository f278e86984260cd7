"""What all tests share: one thread, no network, nobody's settings, and the command line as a user has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: the tests' tensors are too small for a second thread to pay.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
for name in ("TRANSOM_PLUGINS", "FORCE_COLOR", "NO_COLOR", "COLUMNS"):
    os.environ.pop(name, None)

settings.register_profile("transom", deadline=None, derandomize=True, database=None)
settings.load_profile("transom")

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the checkout's root, which is the package's folder too."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Return a function that runs `transom ARGS...` as a process in `tmp_path` and captures its text."""
    code = "from transom.cli import main; main()"

    def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )

    return run


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random numbers, where it draws any from torch."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
