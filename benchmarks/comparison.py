"""What the comparisons share: figures that are kept from run to run, and their place in docs/comparison.md."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import transom

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "comparison.md"
KEPT = ROOT / "build" / "comparison"
VERSIONS = f"transom {transom.__version__}, torch {torch.__version__}, Python {platform.python_version()}"


class Kept:
    """Keep figures as JSON lines, to be found again by all that they follow from: a stopped comparison goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._figures = [json.loads(line) for line in lines]

    def of(self, measured: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what was found for the things `measured`, by these versions; measure it where nothing was."""
        key = json.loads(json.dumps({**measured, "versions": VERSIONS}))
        for line in self._figures:
            if key.items() <= line.items():
                return dict(line)
        line = {**key, **measure()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        self._figures.append(line)
        return line


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, its columns to the right but the first."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def publish(title: str, body: str, page: Path = PAGE) -> None:
    """Print a section and put it into the page: in the place of the one with this title, or at the end."""
    section = f"## {title}\n\n{body.strip()}\n"
    head, *sections = re.split(r"^(?=## )", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    known = [each.partition("\n")[0] for each in sections]
    heading = f"## {title}"
    place = known.index(heading) if heading in known else len(sections)
    sections[place : place + 1] = [section]
    page.write_text("\n".join(each.strip() + "\n" for each in [head, *sections]), encoding="utf-8")
    print(section)
