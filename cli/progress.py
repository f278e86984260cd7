"""Show how far a long run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console

# Called with the step just done, the number of steps, and the figures to show.
Progress: TypeAlias = Callable[[int, int, Mapping[str, float]], None]


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Give a function to call at each logged step; what it shows ends with the block."""
    with bar(console) if console.is_terminal else lines(console) as show:
        yield show


@contextmanager
def lines(console: Console) -> Iterator[Progress]:
    """Give a progress function that prints a line a call."""

    def show(step: int, steps: int, figures: Mapping[str, float]) -> None:
        console.print(f"step {step}/{steps}  {figures_line(figures)}")

    yield show


@contextmanager
def bar(console: Console) -> Iterator[Progress]:
    """Give a progress function that moves a bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    figures_column = TextColumn("{task.fields[figures]}", markup=False)
    with Bar(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), figures_column, console=console) as shown:
        task = shown.add_task("", total=None, figures="")

        def show(step: int, steps: int, figures: Mapping[str, float]) -> None:
            shown.update(task, completed=step, total=steps, figures=figures_line(figures))

        yield show


def figures_line(figures: Mapping[str, float]) -> str:
    """Return named figures as one line, four digits each."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
