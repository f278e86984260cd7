"""Rows of a run's data as its objective prepares them, for whoever measures its model or calibrates by it."""

from __future__ import annotations

from functools import cached_property

import torch

from ..core.initialise import seed_of
from ..core.objective import Objective, Prepared
from ..data import Dataset
from ..data.rows import Batch
from ..errors import DataError
from .run import AnyRun, read_run
from .setup import prepare_data


class Samples:
    """Give rows of a run's data; nothing is read before the first is asked for."""

    def __init__(self, run: AnyRun) -> None:
        self._run = run

    @cached_property
    def _prepared(self) -> tuple[Dataset, Objective, int]:
        run = read_run(self._run)
        if run.spec.data is None or run.spec.objective is None:
            raise DataError(f"{run.folder}: its spec names no {'data' if run.spec.data is None else 'objective'}")
        return *prepare_data(run.spec, run.folder), run.spec.train.seed

    @property
    def objective(self) -> Objective:
        """Return what the model was asked for.

        Raises:
            CheckpointError: the folder is no run.
            DataError: there is no data, or it can't be read.
        """
        return self._prepared[1]

    def held_out(self, tokens: int) -> Prepared:
        """Return the first held-out rows that have so many tokens together, or all, and at least one row.

        Raises:
            CheckpointError: the folder is no run.
            DataError: there is no data, or it can't be read.
        """
        dataset = self._prepared[0]
        first = next(dataset.held_out(1))
        length = max(array.shape[1] if array.ndim > 1 else 1 for array in first.values())
        return self._as_asked(next(dataset.held_out(max(1, tokens // length))), "held out")

    def learned(self, rows: int) -> list[Prepared]:
        """Return rows of the training side, one after the other; raise as `held_out` does."""
        dataset = self._prepared[0]
        return [self._as_asked(dataset.batch(number, 1), f"learned {number}") for number in range(rows)]

    def _as_asked(self, batch: Batch, purpose: str) -> Prepared:
        _, objective, seed = self._prepared
        generator = torch.Generator().manual_seed(seed_of(seed, f"samples: {purpose}"))
        return objective.prepare({name: torch.from_numpy(array) for name, array in batch.items()}, generator)
