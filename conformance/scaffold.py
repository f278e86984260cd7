"""Makes a package of one component that works and passes the suite, for its author to change."""

from __future__ import annotations

import contextlib
import keyword
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import distributions, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from ..core.component import KINDS, spec_name
from ..errors import PluginError
from ..registry.manager import installed
from ..registry.marks import nearest


def scaffold(
    package: str, kind: str, folder: Path | None = None, *, name: str | None = None, mixer: bool = False
) -> Path:
    """Make a package with one component of a kind, and return its folder.

    `package` names the distribution and its entry point, so that a spec says `package/name`. `folder`: where it goes,
    unless given a folder of the package's name here. `name`: of the component; the last word of `package` unless given.
    `mixer`: an attention that owns everything from (B, T, C) to (B, T, C), with a state of fixed size.

    Raises:
        PluginError: a name that can't be used or is taken, an unknown kind, or a folder that holds something. Nothing
            is left behind.
    """
    if kind not in KINDS:
        raise PluginError(f"--kind: there is no kind '{kind[:100]}'{nearest(kind, KINDS)}")
    if mixer and kind != "attention":
        raise PluginError(f"--mixer: is for attention; {kind} has one form")
    _check_package(package)
    component = package.rpartition("-")[2] if name is None else name
    contents = _contents(package, kind, component, "mixer" if mixer else kind)
    folder = Path(package) if folder is None else folder
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise PluginError(f"{folder}: is there already and is no empty folder: choose another with -o")
    _write(folder, contents)
    return folder


def _check_package(package: str) -> None:
    """Refuse a name that no distribution, module and entry point can share, or that something installed has."""
    plain = re.sub(r"[^a-z0-9]+", "-", package.lower()).strip("-")
    if package != plain or not package[:1].isalpha() or keyword.iskeyword(package):
        allowed = "small letters, digits and single hyphens between them, a letter first"
        hint = f" (did you mean '{plain}'?)" if plain[:1].isalpha() and plain != package else ""
        raise PluginError(f"NAME: '{package[:100]}' can't name a package: {allowed}{hint}")
    module = package.replace("-", "_")
    for found in installed():
        if package == found.name:
            by = f"{found.distribution} {found.version}".strip()
            raise PluginError(f"NAME: '{package}' is taken: {by} brings components under it; choose another")
    if any(re.sub(r"[-_.]+", "-", found.name or "").lower() == package for found in distributions()):
        raise PluginError(f"NAME: '{package}' is taken: a distribution of that name is installed; choose another")
    if module in sys.stdlib_module_names or find_spec(module) is not None:
        raise PluginError(f"NAME: '{package}' is taken: a module '{module}' can be imported here; choose another")


def _class_name(name: str, kind: str, ending: str) -> str:
    """Return the class that a spec calls `name`, from which the registry reads that name again."""
    cls = "".join(word.capitalize() for word in name.split("_")) + ending
    written = re.fullmatch(r"[a-z][a-z0-9]*(_[a-z][a-z0-9]*)*", name) is not None
    if not written or keyword.iskeyword(name) or name == "none" or spec_name(type(cls, (), {"kind": kind})) != name:
        allowed = "words of small letters and digits, two or more each, with _ between them"
        raise PluginError(f"--name: '{name[:100]}' can't name a component: {allowed}; `none` is taken")
    return cls


def _contents(package: str, kind: str, name: str, template: str) -> dict[str, str]:
    """Return the files of the package: path below its folder -> text."""
    module, component, source = package.replace("-", "_"), f"{package}/{name}", _template(f"{template}.py")
    ending = source.partition("class New")[2].partition("(")[0]
    cls = _class_name(name, kind, ending)
    known = tomllib.loads(_template("parts.toml.in"))
    parts = known["all"] | {kind: "$component"} | known.get(template, {})
    parts = {part: Template(said).safe_substitute(component=component) for part, said in parts.items()}
    values = {"package": package, "module": module, "kind": kind, "name": name, "cls": cls}
    values |= parts | {"line": f"{kind}: {parts[kind]}", "version": version("transom")}
    filled = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "spec.yaml": "spec.yaml",
        f"src/{module}/__init__.py": "package.py",
        "tests/test_conformance.py": "test_conformance.py",
        ".github/workflows/ci.yml": "ci.yml",
    }
    return {
        **{path: Template(_template(f"{file}.in")).substitute(values) for path, file in filled.items()},
        f"src/{module}/{name}.py": source.replace(f"New{ending}", cls),
        f"src/{module}/py.typed": "",
    }


def _template(file: str) -> str:
    return (files(__package__) / "templates" / file).read_text(encoding="utf-8")


def _write(folder: Path, contents: Mapping[str, str]) -> None:
    """Write a folder whole or not at all: beside its place, then renamed."""
    folder = folder.absolute()
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        for path, text in contents.items():
            (beside / path).parent.mkdir(parents=True, exist_ok=True)
            (beside / path).write_text(text, encoding="utf-8", newline="\n")
        if folder.exists():  # empty, and not every system renames over it
            folder.rmdir()
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise PluginError(f"{folder}: can't be written: {error.strerror or error}") from None
