"""Train models, take trainings up again, and measure what they reach."""

from .events import Event, Report
from .loop import evaluate, train
from .run import Run, load, read_run

__all__ = ["Event", "Report", "Run", "evaluate", "load", "read_run", "train"]
