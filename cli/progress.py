"""Show how far a training is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from ..training.events import Event, Report


@contextmanager
def progress(console: Console) -> Iterator[Report]:
    """Give a function to call with each event; what it shows ends with the block."""
    with bar(console) if console.is_terminal else lines(console) as show:
        yield show


@contextmanager
def lines(console: Console) -> Iterator[Report]:
    """Give a report that prints a line an event."""
    yield lambda event: console.print(describe(event))


@contextmanager
def bar(console: Console) -> Iterator[Report]:
    """Give a report that moves a bar at each logged step, and prints all other events above it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..training.events import Resumed, Started, Stepped

    figures_column = TextColumn("{task.fields[figures]}", markup=False)
    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), figures_column, console=console) as shown:
        task = shown.add_task("", total=None, figures="")

        def show(event: Event) -> None:
            if isinstance(event, Started | Resumed):
                shown.update(task, total=event.steps)
            if isinstance(event, Stepped):
                shown.update(task, completed=event.step, total=event.steps, figures=figures_line(event.figures))
            else:
                console.print(describe(event))

        yield show


def describe(event: Event) -> str:
    """Return an event of a training as a line."""
    from ..training import events

    match event:
        case events.Started():
            frozen = "" if event.trained == event.parameters else f", {event.trained:,} of them trained"
            return f"{event.data}\n{event.folder}: {event.parameters:,} parameters{frozen}, on {event.device}"
        case events.Initialised():
            fresh = f"; new: {', '.join(event.fresh)}" if event.fresh else ""
            return f"weights from {event.run}{fresh}"
        case events.Resumed():
            return f"going on after step {event.step} of {event.steps}"
        case events.Stepped():
            return f"step {event.step}/{event.steps}  {figures_line(event.figures)}"
        case events.Evaluated():
            return f"step {event.step}/{event.steps}  held out: {figures_line(event.figures)}"
        case events.Saved():
            return f"step {event.step}: saved {event.folder.name}"
        case events.Stopped():
            why = "done" if event.reason == "done" else "no better for a while: stopped early"
            return f"step {event.step}: {why}"


def figures_line(figures: Mapping[str, float]) -> str:
    """Return named figures as one line, four digits each."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
