"""What all tests share: one thread, no network, nobody's settings, and the command line as a user has it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from slices import left_out

# Before torch is imported: the tests' tensors are too small for a second thread to pay.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
for name in ("TRANSOM_PLUGINS", "FORCE_COLOR", "NO_COLOR", "COLUMNS"):
    os.environ.pop(name, None)

# Garbage is looked for among the million objects of torch's modules: as often as usual, that is a tenth of all time.
gc.set_threshold(50_000, 20, 100)

settings.register_profile("transom", deadline=None, derandomize=True, database=None)
settings.load_profile("transom")

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to the long walks what the quick profile has enough of."""
    together = "transom" in config.getoption("transom")
    for item in items if config.getoption("transom_profile") == "quick" else ():
        proof = getattr(item, "proof", None)
        if proof is not None and left_out(proof, together):
            item.add_marker("long")


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the checkout's root, which is the package's folder too."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Return a function that runs `transom ARGS...` as a process in `tmp_path` and captures its text."""
    # Ctrl-C counts, even where whoever started the tests ignores it, as shells let what runs in the background do.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from transom.cli import main; main()"
    )

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


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Return a function that installs a distribution whose entry point `name` is a module with this source.

    It returns the folder, which child processes need on PYTHONPATH.
    """
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)

    def put(name: str, source: str, distribution: str = "", module: str = "", version: str = "1.2") -> Path:
        distribution, module = distribution or name, module or f"{name}_module"
        (folder / f"{module}.py").write_text(source)
        metadata = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[transom]\n{name} = {module}\n")
        return folder

    yield put
    for module in set(sys.modules) - before:
        if module.endswith("_module"):
            del sys.modules[module]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], subprocess.CompletedProcess[str]]:
    """Make an environment of its own and return a function that runs a line of shell in it, in a folder.

    It shares what is installed here, so that nothing is downloaded; what a line installs stays in it.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    commands = home / "bin"
    site = subprocess.run(
        [commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # Not its path alone, which would leave out what is installed here as editable.
    Path(site, "shared.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name, module in (("pip", "pip"), ("transom", "transom.cli"), ("pytest", "pytest")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{commands}/python" -m {module} "$@"\n')
        (commands / name).chmod(0o755)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    # Pip reads the opposite of what it asks in NO_BUILD_ISOLATION: 0 leaves the isolation out.
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["sh", "-c", line], cwd=folder, env={**os.environ, **pip, "PATH": path, "PIP_QUIET": "1"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random numbers, where it draws any from torch."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(0)  # torch.manual_seed formats the stack three times, for devices not here
