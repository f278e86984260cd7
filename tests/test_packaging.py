"""What is installed: the wheel's files, the lock, the lazy API."""

from __future__ import annotations

import ast
import gc
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import transom

OUTSIDE = {"tests", "benchmarks", "examples", "docs", "build", "dist", "runs", "out"}


def packaged_folders(root: Path) -> dict[str, list[str]]:
    """Return the files that belong in a wheel, by package, as the tree has them."""
    folders: dict[str, list[str]] = {}
    data = [*root.glob("specs/**/*.yaml"), *root.glob("conformance/templates/*.in"), root / "py.typed"]
    for path in [*root.glob("*.py"), *root.glob("[!.]*/**/*.py"), *data]:
        parts = path.relative_to(root).parts
        if parts[0] not in OUTSIDE:
            folders.setdefault(".".join(("transom", *parts[:-1])), []).append("/".join(("transom", *parts)))
    return folders


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with `args` in `cwd`; a failure shows what it printed."""
    done = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_listed_packages_are_those_in_the_tree(root: Path, project: dict[str, Any]) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    assert listed == sorted(set(listed))
    assert set(listed) == set(packaged_folders(root))


def test_the_wheel_holds_the_package_and_nothing_else(root: Path, tmp_path: Path) -> None:
    # From a copy: setuptools leaves its build folder beside what it builds.
    skipped = shutil.ignore_patterns(".*", "build", "runs", "out", "*.egg-info", "__pycache__")
    tree = shutil.copytree(root, tmp_path / "tree", ignore=skipped)
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree), cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"transom-{transom.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    expected = {file for files in packaged_folders(root).values() for file in files}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_lock_pins_every_dependency_and_names_no_index(root: Path, project: dict[str, Any]) -> None:
    lines = (root / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    pattern = re.compile(r"([a-z0-9-]+)==[0-9][0-9.a-z]*( ; .+)?")
    names = [found[1] if (found := pattern.fullmatch(pin)) else pytest.fail(f"not a pin: {pin}") for pin in pins]
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["test"]]
    needed = {re.split(r"[<>=;\[ ]", line)[0].lower() for line in wanted}
    assert len(names) == len(set(names))
    assert needed <= set(names)
    assert "torch==2.13.0" in pins
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_version_is_the_installed_one() -> None:
    assert transom.__version__ == version("transom")


def test_type_checkers_and_users_see_the_same_names(root: Path) -> None:
    tree = ast.parse((root / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {a.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert typed == {name: f"transom.{home}" for name, home in transom._HOMES.items()}
    assert transom.__all__ == sorted(typed)


def test_every_public_name_is_there() -> None:
    assert set(transom.__all__) <= set(dir(transom))
    for name in transom.__all__:
        assert getattr(transom, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'transom' has no attribute 'comppose'"):
        _ = transom.comppose  # type: ignore[attr-defined]


@pytest.mark.parametrize("wanted", [True, False])
def test_no_garbage_is_looked_for_while_a_name_is_imported(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def imported(name: str) -> object:
        seen.append(gc.isenabled())
        raise ImportError(name)

    monkeypatch.setattr(transom, "import_module", imported)
    monkeypatch.delitem(vars(transom), "compose", raising=False)
    was = gc.isenabled()
    try:
        (gc.enable if wanted else gc.disable)()
        with pytest.raises(ImportError, match=r"^transom.registry.compose$"):
            _ = transom.compose
        assert (seen, gc.isenabled()) == ([False], wanted)
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_pytest_runs_in_both_import_modes(root: Path, mode: str) -> None:
    chosen = "tests/test_arrows.py::test_every_import_follows_the_arrows"
    done = run(
        "-m", "pytest", f"--import-mode={mode}", "-p", "no:cacheprovider", "-q", "--collect-only", chosen, cwd=root
    )
    assert "1 test collected" in done.stdout
