"""The micro batches of each step: the same ones however many processes share them, and in whatever parts."""

from __future__ import annotations

import torch

from ..core.initialise import seed_of
from ..core.objective import Objective, Prepared
from ..data import Dataset
from ..registry.settings import TrainSettings
from .processes import World


class Batches:
    """Give this process's share of each step.

    A step takes `batch_size * accumulate` rows. They are cut into one part for each micro batch of each process, so the
    rows of a step follow from its number alone.
    """

    def __init__(self, dataset: Dataset, objective: Objective, settings: TrainSettings, world: World) -> None:
        """Raise DataError when the training side is too small for one step."""
        self.dataset = dataset
        self.objective = objective
        self.settings = settings
        self.world = world
        self._rows = settings.batch_size // world.size
        self._parts = settings.accumulate * world.size
        dataset.batches_per_epoch(self._rows, self._parts)

    def of_step(self, step: int) -> list[Prepared]:
        """Return the prepared micro batches of a step, from 1, on CPU."""
        return [self._part(step, part) for part in range(self.world.rank, self._parts, self.world.size)]

    def _part(self, step: int, part: int) -> Prepared:
        batch = self.dataset.batch(step - 1, self._rows, part, self._parts)
        generator = torch.Generator().manual_seed(seed_of(self.settings.seed, f"objective:{step}:{part}"))
        return self.objective.prepare({name: torch.from_numpy(array) for name, array in batch.items()}, generator)
