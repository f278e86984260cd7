"""Imports run one way: each room imports only the rooms that it may know, and only the libraries that it may need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# What each room may import of ours, besides itself. Nothing imports `plugins`: the registry finds them by entry point.
ROOMS = {
    "errors": set(),
    "core": {"errors"},
    "plugins": {"core", "errors"},
    "registry": {"core", "errors"},
    "data": {"core", "errors"},
    "generation": {"errors"},
    "interop": {"core", "registry", "errors"},
    "training": {"core", "registry", "data", "errors"},
    "deploy": {"core", "registry", "generation", "errors"},
    "conformance": {"core", "registry", "data", "generation", "interop", "training", "deploy", "errors"},
    "cli": {"core", "registry", "data", "generation", "interop", "training", "deploy", "conformance", "errors"},
}
ROOMS["__init__"] = ROOMS["cli"]
# Libraries that a folder or file does without.
WITHOUT = {
    "errors.py": {"torch", "numpy"},
    "core": {"yaml", "omegaconf", "pluggy", "onnx", "onnxruntime", "datasets", "tokenizers", "typer", "rich"},
    "plugins": {"yaml", "omegaconf", "onnxruntime", "typer", "rich"},
    "data": {"torch", "onnx", "onnxruntime"},
    "generation": {"torch", "onnx", "onnxruntime", "onnxscript"},
    **{
        f"deploy/{name}.py": {"torch", "onnxscript", "onnx"}
        for name in (
            *("arrays", "cases", "chat", "checking", "gate", "manifest", "reaching", "reference", "report", "runtime"),
            *("session", "strict", "timing", "walk", "words"),
        )
    },
}
OUTSIDE = {"tests", "benchmarks", "examples", "docs", "build", "dist", "runs"}


def imported(tree: ast.AST, module: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield the line and the absolute dotted name of everything that a module, or a part of it, imports.

    `module` is its name in parts, `__init__` included. Imports in functions and under TYPE_CHECKING count, and so do
    calls of import_module and __import__ with a name.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module[: len(module) - node.level] if node.level else ()
            base = (*package, node.module) if node.module else package
            yield from ((node.lineno, ".".join((*base, alias.name))) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def offences(file: str, source: str) -> list[str]:
    """Return what is wrong with the imports of a file of the package, whose path is relative to the root."""
    parts = tuple(file.removesuffix(".py").split("/"))
    room = parts[0]
    if room not in ROOMS:
        return [f"{file}: room {room} is not in the table"]
    without = {
        library for place, libraries in WITHOUT.items() if (file + "/").startswith(place + "/") for library in libraries
    }
    # A component knows no sibling; only the file that lists the components imports them.
    allowed = ROOMS[room] | ({room} if room != "plugins" or file == "plugins/__init__.py" else set())
    wrong = []
    for line, name in imported(ast.parse(source), ("transom", *parts)):
        top, _, rest = name.partition(".")
        if top in without or (top == "transom" and rest.partition(".")[0] not in allowed):
            wrong.append(f"{file}:{line}: {room} must not import {name}")
    return wrong


def package_files(root: Path) -> list[str]:
    """Return the paths, relative to the root, of all modules of the package."""
    files = (
        path.relative_to(root) for path in root.glob("[!.]*/**/*.py") if path.relative_to(root).parts[0] not in OUTSIDE
    )
    return sorted(path.as_posix() for path in (*files, Path("__init__.py"), Path("errors.py")))


def test_every_import_follows_the_arrows(root: Path) -> None:
    files = package_files(root)
    assert {"__init__.py", "errors.py", "core/component.py", "cli/__init__.py"} <= set(files)
    wrong = [line for file in files for line in offences(file, (root / file).read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/attention.py", "from ..registry.spec import Spec"),
        ("core/attention.py", "from .. import registry"),
        ("core/attention.py", "import transom.data.text"),
        ("core/attention.py", "from transom import compose"),
        ("core/attention.py", "import yaml"),
        ("registry/manager.py", "from ..plugins.attention.local import LocalAttention"),
        ("registry/manager.py", "def f():\n    import importlib\n    importlib.import_module('transom.plugins')"),
        ("registry/compose.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..training import Run"),
        ("registry/__init__.py", "from ..deploy import export"),
        ("data/text.py", "def f():\n    import torch.nn"),
        ("data/text.py", "from ..registry import manager"),
        ("generation/loop.py", "from ..core.state import State"),
        ("generation/loop.py", "from onnxruntime import InferenceSession"),
        ("training/loop.py", "from ..deploy.arrays import ArrayRuntime"),
        ("deploy/export.py", "from ..training import load"),
        ("deploy/arrays.py", "import torch"),
        ("deploy/arrays.py", "def f():\n    from torch import Tensor"),
        ("plugins/attention/local.py", "from .full import FullAttention"),
        ("plugins/attention/local.py", "from ..norm.rms import RMSNorm"),
        ("plugins/attention/local.py", "from ...registry import manager"),
        ("interop/hf.py", "from ..training import load"),
        ("cli/show.py", "from ..plugins import components"),
        ("errors.py", "from .core.component import Component"),
        ("__init__.py", "def f():\n    from transom.plugins import components"),
        ("sheds/tools.py", "import os"),
    ],
)
def test_a_planted_offence_is_found(file: str, source: str) -> None:
    assert len(offences(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "core/attention.py",
            "import torch\nfrom ..errors import SpecError\nfrom .state import State\nfrom . import state",
        ),
        ("registry/compose.py", "from ..core.attention import Attention\nfrom .spec import Spec\nimport yaml"),
        ("plugins/__init__.py", "from .attention.local import LocalAttention"),
        ("plugins/attention/local.py", "from ...core.attention import Attention"),
        ("training/loop.py", "from ..registry.compose import compose\nfrom ..data import prepare\nimport torch"),
        ("deploy/arrays.py", "import onnxruntime\nfrom ..generation import generate"),
        ("deploy/export.py", "import torch\nfrom ..registry.spec import Spec"),
        ("cli/app.py", "from ..training import train\nfrom ..deploy import export"),
        ("__init__.py", "from transom.registry.spec import load_spec"),
    ],
)
def test_what_is_allowed_passes(file: str, source: str) -> None:
    assert offences(file, source) == []


@pytest.mark.parametrize("module", ["transom", "transom.errors", "transom.cli.app", "transom.generation"])
def test_a_module_loads_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
