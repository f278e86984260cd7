"""`transom plugins new`: what it makes works, for each kind, and a name that can't be used leaves nothing behind."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from texts import write_texts

from transom import conformance
from transom.conformance.scaffold import scaffold
from transom.core.component import KINDS
from transom.errors import PluginError
from transom.registry.compose import compose
from transom.registry.manager import Registry
from transom.registry.spec import load_spec

Command = Callable[..., subprocess.CompletedProcess[str]]
Run = Callable[[str, Path], subprocess.CompletedProcess[str]]

TEMPLATES = (*KINDS, "mixer")
# The row that tells most about a kind, and takes least.
ROWS = {
    "attention": 10,
    "mixer": 10,
    "position": 17,
    "norm": 26,
    "feedforward": 2,
    "embedding": 2,
    "head": 7,
    "topology": 10,
}
FILES = ["pyproject.toml", "README.md", "spec.yaml", "tests/test_conformance.py", ".github/workflows/ci.yml"]


def made(folder: Path, template: str) -> Path:
    """Make a package from a template, whose module no other test imports."""
    kind = "attention" if template == "mixer" else template
    return scaffold(f"odd-{template}", kind, folder / "there", name="thing2", mixer=template == "mixer")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_makes_a_whole_package_in_good_style(template: str, tmp_path: Path) -> None:
    folder = made(tmp_path, template)
    source = [f"src/odd_{template}/{name}" for name in ("__init__.py", "thing2.py", "py.typed")]
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert sorted(found) == sorted([*FILES, *source])
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    text = "".join((folder / path).read_text() for path in found)
    assert f"odd-{template}/thing2" in text
    assert not re.search(r"\bNew[A-Z]", text)
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select=E,F,W,B,UP,RUF", str(folder)]
    done = subprocess.run([*ruff, "--line-length=120"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_s_component_composes_and_passes(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path, template)
    monkeypatch.syspath_prepend(folder / "src")
    point = EntryPoint(f"odd-{template}", f"odd_{template}", "transom")
    registry = Registry([*entry_points(group="transom", name="transom"), point])
    spec = load_spec(str(folder / "spec.yaml"), registry=registry)
    model = compose(spec, device="meta")
    (cls,) = importlib.import_module(f"odd_{template}").transom_components()
    assert registry.full_name(cls) == f"odd-{template}/thing2"
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    report = conformance.check(cls, rows=[ROWS[template]] if template in ROWS else ())
    assert report.passed, report.table()


def test_a_package_is_built_installed_checked_and_trained(environment: Run, tmp_path: Path) -> None:
    environment("transom plugins new acme-ring --kind attention --mixer -o made", tmp_path)
    folder = tmp_path / "made"
    environment("pip wheel --wheel-dir ../wheels .", folder)
    (wheel,) = (tmp_path / "wheels").iterdir()
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {"acme_ring/__init__.py", "acme_ring/py.typed", "acme_ring/ring.py"}
    environment(f"pip install {wheel}", tmp_path)
    assert "acme-ring" in environment("transom plugins", tmp_path).stdout
    environment("pytest -q -p no:cacheprovider -k composes", folder)
    # The guide's test runs more rows by that command, and a test above those that tell most of each template.
    checked = environment("transom plugins check acme-ring --row 0", tmp_path)
    assert "acme-ring/ring" in checked.stdout
    write_texts(tmp_path)
    environment("transom train made/spec.yaml -o run data.path=text data.hold_out=0.25", tmp_path)
    assert "kind: acme-ring/ring\n" in (tmp_path / "run" / "spec.yaml").read_text()
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("acme-ring", "--kind", "atention"), "there is no kind 'atention' (did you mean 'attention'?)"),
        (("Acme_Ring", "--kind", "norm"), "'Acme_Ring' can't name a package: small letters"),
        (("Acme_Ring", "--kind", "norm"), "(did you mean 'acme-ring'?)"),
        (("2nd-ring", "--kind", "norm"), "'2nd-ring' can't name a package"),
        (("transom", "--kind", "norm"), "'transom' is taken: transom 0.1.0 brings components under it"),
        (("typing-extensions", "--kind", "norm"), "'typing-extensions' is taken: a distribution of that name"),
        (("statistics", "--kind", "norm"), "'statistics' is taken: a module 'statistics' can be imported here"),
        (("acme-2d", "--kind", "norm"), "--name: '2d' can't name a component"),
        (("acme-ring", "--kind", "norm", "--name", "a_b"), "--name: 'a_b' can't name a component"),
        (("acme-ring", "--kind", "norm", "--name", "none"), "`none` is taken"),
        (("acme-class", "--kind", "norm"), "--name: 'class' can't name a component"),
        (("acme-ring", "--kind", "norm", "--mixer"), "--mixer: is for attention; norm has one form"),
        (("acme-ring", "--kind", "norm", "-o", "full"), "full: is there already and is no empty folder"),
        (("acme-ring", "--kind", "norm", "-o", "full/file"), "full/file: is there already and is no empty folder"),
        (("acme-ring", "--kind", "norm", "-o", "full/file/new"), "can't be written: Not a directory"),
    ],
)
def test_what_can_t_be_made_is_refused(
    arguments: tuple[str, ...], message: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    done = command("plugins", "new", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["full", "full/file"]


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PluginError, match="new/ring: can't be written: No space left on device"):
        scaffold("acme-ring", "norm", tmp_path / "new" / "ring")
    assert not any(tmp_path.iterdir())


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "ring").mkdir()
    assert scaffold("acme-ring", "norm", tmp_path / "ring") == tmp_path / "ring"
    assert (tmp_path / "ring" / "src" / "acme_ring" / "ring.py").is_file()
