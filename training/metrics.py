"""The record of a training: metrics.jsonl, a drawing of the losses, and TensorBoard where it is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .disk import put, sync, write_text

METRICS, DRAWING = "metrics.jsonl", "loss.png"


class Record:
    """Write figures of steps into a run folder, as if training had never been interrupted after step `after`."""

    def __init__(self, folder: Path, after: int, tensorboard: bool) -> None:
        self._folder = folder
        self._path = folder / METRICS
        kept = "".join(json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= after)
        beside = folder / f".{METRICS}.new"
        write_text(beside, kept)
        put(beside, self._path)
        self._file = self._path.open("a", encoding="utf-8", newline="\n")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, figures: Mapping[str, float], prefix: str = "") -> None:
        """Add a line; `prefix` goes before each figure's name."""
        named = {prefix + name: value for name, value in figures.items()}
        self._file.write(json.dumps({"step": step, **named}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in named.items():
                self._board.add_scalar(name.replace("eval_", "eval/"), value, step)

    def sync(self) -> None:
        """Force all lines to the disk: a checkpoint's are there when it is."""
        os.fsync(self._file.fileno())

    def draw(self) -> None:
        """Draw the losses of steps and evaluations as loss.png."""
        from matplotlib.figure import Figure

        lines = read_metrics(self._folder)
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss (nats a target)")
        for name, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        if axes.lines:
            axes.legend()
        axes.grid(alpha=0.3)
        beside = self._folder / f".{DRAWING}.new"
        figure.savefig(beside, format="png")
        sync(beside)
        put(beside, self._folder / DRAWING)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's metrics.jsonl; the last is left out where its end is missing."""
    path = folder / METRICS
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
