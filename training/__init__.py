"""Train models, take trainings up again, and measure what they reach."""

from .events import Event, Report
from .loop import evaluate, train
from .run import Run, load, read_run
from .samples import Samples

__all__ = ["Event", "Report", "Run", "Samples", "evaluate", "load", "read_run", "train"]
