"""Turn what commands get back into what they print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from ..registry.manager import Installed


class Branch(Protocol):
    """Stand for a part of a model: what it is, its figures, and what it consists of."""

    @property
    def label(self) -> str: ...
    @property
    def detail(self) -> str: ...
    @property
    def children(self) -> Sequence[Branch]: ...


def tree(branch: Branch, under: Tree | None = None) -> Tree:
    """Return a model's parts as a tree, one line each."""
    line = Text.assemble(branch.label, ("  " + branch.detail, "dim") if branch.detail else "")
    here = under.add(line) if under else Tree(line)
    for child in branch.children:
        tree(child, here)
    return here


def package(found: Installed) -> str:
    """Return the line that lists a package of components."""
    barred = f"  ({found.barred})" if found.barred else ""
    return f"{found.name}  {found.release}  {found.module}{barred}"


@contextmanager
def writer(prompts: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
    """Give a function that takes pieces of each prompt's text as they are made, and write them to standard output.

    One prompt's text is written piece by piece. Several texts grow at once, so they are written at the end, each under
    its prompt.
    """
    texts = [""] * len(prompts)

    def take(row: int, piece: str) -> None:
        texts[row] += piece
        if len(prompts) == 1:
            sys.stdout.write(piece)
            sys.stdout.flush()

    yield take
    if len(prompts) == 1:
        print()
        return
    for prompt, text in zip(prompts, texts, strict=True):
        print(f"> {prompt}\n{text}\n")
