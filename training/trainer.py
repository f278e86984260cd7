"""The course of a training: steps, what is recorded of them, evaluations, checkpoints, and how it ends."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..errors import TrainingError
from ..registry.spec import Spec
from ..registry.weights import WEIGHTS, fill, renewed
from .batches import Batches
from .checkpoint import Checkpoint, Checkpoints, Progress, renew_weights, write_weights
from .evaluation import measure
from .events import Evaluated, Report, Resumed, Saved, Stepped, Stopped
from .metrics import Record
from .optimizer import optimizer_tensors, restore_optimizer
from .precision import Precision
from .run import CHECKPOINTS
from .step import Step
from .update import Updater


class Trainer:
    """Train one model in one run folder, from the start or on from a checkpoint."""

    def __init__(
        self, spec: Spec, folder: Path, step: Step, batches: Batches, newest: Checkpoint | None, tell: Report
    ) -> None:
        self.settings = spec.train
        self.folder = folder
        self.batches = batches
        self.tell = tell
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, self.settings.keep_checkpoints)
        self.progress = Progress() if newest is None else newest.progress
        self.model = step.model
        if newest is not None:
            fill(self.model, newest.model, self.checkpoints.path(self.progress.step))
        self.step = step.train()
        self.precision = Precision(self.settings.precision, batches.world.device)
        self.updater = Updater(step, batches, self.precision)
        if newest is not None:
            moments = renewed(self.model, newest.optimizer)
            restore_optimizer(self.updater.optimizer, self.model, moments, self.updater.sharing.share)
            self.precision.restore(self.progress.scaler)
            tell(Resumed(self.progress.step, self.settings.steps))

    def run(self) -> None:
        """Train until the last step, or until evaluations no longer improve; raise TrainingError as `train` does."""
        weights = self._weights() if self.progress.step else None
        if not self.batches.world.first:
            self._go_on(None)
            return
        self.checkpoints.clear()
        if weights is not None:
            # It may have been stopped after the checkpoint was there, and before its weights were.
            renew_weights(self.folder / WEIGHTS, weights)
        del weights
        with Record(self.folder, self.progress.step, self.settings.tensorboard) as record:
            self._go_on(record)
        self.tell(Stopped(self.progress.step, "done" if self.progress.step == self.settings.steps else "early_stop"))

    def _go_on(self, record: Record | None) -> None:
        """Take the steps that are left; without a record nothing is written or told."""
        clock, tokens = time.perf_counter(), self.progress.tokens
        while not self._ended:
            step = self.progress.step + 1
            figures = self.updater.update(step)
            self.progress = replace(self.progress, step=step, tokens=self.progress.tokens + int(figures.pop("targets")))
            if record and (step % self.settings.log_every == 0 or step in (1, self.settings.steps)):
                speed = (self.progress.tokens - tokens) / (time.perf_counter() - clock)
                figures |= {"tokens": self.progress.tokens, "tokens_per_second": speed}
                record.write(step, figures)
                self.tell(Stepped(step, self.settings.steps, figures))
                clock, tokens = time.perf_counter(), self.progress.tokens
            evaluates, saves = self._due(self.settings.eval_every), self._due(self.settings.checkpoint_every)
            if evaluates:
                self._evaluate(record)
            if record and (evaluates or self._ended):
                record.draw()
            if saves or self._ended:
                self._save(record)
            if evaluates or saves:
                clock, tokens = time.perf_counter(), self.progress.tokens

    @property
    def _ended(self) -> bool:
        patience = self.settings.early_stop
        return self.progress.step >= self.settings.steps or 0 < patience <= self.progress.stale

    def _due(self, every: int) -> bool:
        """Say whether something done every so many steps, and at the end, is due; 0 is never."""
        return every > 0 and (self.progress.step % every == 0 or self.progress.step == self.settings.steps)

    def _evaluate(self, record: Record | None) -> None:
        figures = measure(self.step, self.batches.dataset, self.settings, self.precision, self.batches.world)
        if not math.isfinite(figures["loss"]):
            raise TrainingError(
                f"step {self.progress.step}: the loss on the held-out data is {figures['loss']}: training stops, and "
                "the last checkpoint and weights stay; lower train.lr or look at the data"
            )
        best = self.progress.best
        better = best is None or figures["loss"] < best
        self.progress = replace(
            self.progress,
            best=figures["loss"] if better else best,
            stale=0 if better else self.progress.stale + 1,
            metrics=figures,
        )
        if record:
            record.write(self.progress.step, figures, prefix="eval_")
            self.tell(Evaluated(self.progress.step, self.settings.steps, figures))

    def _weights(self) -> dict[str, Tensor]:
        """Return the whole weights in the first process; all call it together."""
        return self.updater.sharing.whole(self.model.state_dict())

    def _save(self, record: Record | None) -> None:
        """Write a checkpoint, then put its weights in the place where readers look for them; all call it together."""
        weights = self._weights()  # which lets parameters be shares again: the optimizer knows those
        moments = self.updater.sharing.whole(optimizer_tensors(self.updater.optimizer, self.model))
        if record is None:
            return
        record.sync()
        self.progress = replace(self.progress, scaler=self.precision.state())
        where = self.checkpoints.save(self.progress, weights, moments)
        write_weights(self.folder / WEIGHTS, weights)
        self.tell(Saved(self.progress.step, where))
