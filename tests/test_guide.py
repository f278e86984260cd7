"""The author's guide: its code and its commands run, from the first line to the wheel."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from slices import COMPILES, EXPORTS
from texts import write_texts

from transom.conformance.registered import TITLES

Run = Callable[[str, Path], subprocess.CompletedProcess[str]]

MOST_LINES = 40
# What is put behind a command of the page, by how it begins: text that is read faster than the standard library, and
# the rows that neither compile nor export.
SHORTER = {
    "transom train": "data.path=../text data.hold_out=0.25",
    "transom plugins check": " ".join(f"--row {number}" for number in TITLES if number not in (COMPILES, EXPORTS)),
}
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def blocks(root: Path) -> list[tuple[str, str, str]]:
    """Return the guide's blocks in order: language, file (or nothing), text."""
    return BLOCK.findall((root / "docs" / "authors.md").read_text(encoding="utf-8"))


def test_a_position_and_a_norm_take_few_lines(blocks: list[tuple[str, str, str]]) -> None:
    lines = {file: text.count("\n") for _, file, text in blocks if file.startswith("src/")}
    assert [file for file, count in lines.items() if count > MOST_LINES] == []
    assert len(lines) == 3


def test_the_guide_imports_from_the_core_alone(blocks: list[tuple[str, str, str]]) -> None:
    code = "".join(text for _, file, text in blocks if file.startswith("src/"))
    assert set(re.findall(r"^(?:from|import) (transom[.\w]*)", code, re.MULTILINE)) == {"transom.core"}


@pytest.mark.timeout(400)  # a dozen commands, each a process that imports torch
def test_every_line_of_the_guide_runs(blocks: list[tuple[str, str, str]], environment: Run, tmp_path: Path) -> None:
    write_texts(tmp_path)
    folder, printed = tmp_path, ""
    for language, file, text in blocks:
        if file:
            assert (folder / file).parent.is_dir(), f"{file} is not where the guide stands"
            (folder / file).write_text(text)
        for line in re.findall(r"^\$ (.+)$", text, re.MULTILINE) if language == "console" else ():
            if line.startswith("cd "):
                folder = folder / line.removeprefix("cd ")
            else:
                more = [text for begin, text in SHORTER.items() if line.startswith(begin)]
                printed += environment(" ".join([line, *more]), folder).stdout
    assert folder.name == "acme-ring"
    for component in ("acme-ring/clock", "acme-ring/length"):
        assert component in printed
        assert component in (folder / "transom.schema.json").read_text()
    assert "fail" not in printed
    (wheel,) = (folder / "dist").iterdir()
    assert wheel.name == "acme_ring-0.1.0-py3-none-any.whl"
    assert {"acme_ring/clock.py", "acme_ring/length.py"} <= set(zipfile.ZipFile(wheel).namelist())
    environment("pytest -q -p no:cacheprovider --collect-only", folder)
