"""One optimizer step: gradients of all its micro batches, checked and clipped, and the update."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from ..core.initialise import seed_of
from ..core.objective import Prepared
from ..errors import TrainingError
from .batches import Batches
from .graph import CapturedPass
from .optimizer import adamw
from .precision import Precision
from .regions import compile_regions
from .schedule import learning_rate
from .sharing import shared
from .step import Step, moved


class Updater:
    """Take optimizer steps; what step `n` does follows from the weights, the optimizer's state and `n` alone."""

    def __init__(self, step: Step, batches: Batches, precision: Precision) -> None:
        self.settings = batches.settings
        self.batches = batches
        self.world = batches.world
        self.precision = precision
        self._weights = step.objective.weights
        self.sharing = shared(step, self.settings, self.world)
        self.learned = [parameter for parameter in step.parameters() if parameter.requires_grad]
        self.optimizer = adamw(step, self.settings)
        precision.convert(step)
        precision.caches = self.sharing.caches
        if self.settings.compile:
            compile_regions(step, by=self.sharing.compile)
        graph = self.settings.cuda_graph
        self._captured = CapturedPass(self._pass, self.learned, self.world.device) if graph else None
        self._ahead: tuple[int, list[Prepared]] = (0, [])

    def update(self, step: int) -> dict[str, float]:
        """Take step `step`, from 1, and return its `loss`, `lr`, `grad_norm` and number of `targets`.

        The loss is the mean over the targets of all micro batches of all processes, before the update: of each head
        that is asked, times its weight, added up. fp16 leaves the
        weights as they are, and `grad_norm` out, where the gradients overflowed.

        Raises:
            TrainingError: the loss or the gradients are not finite; nothing has been updated.
        """
        number, parts = self._ahead
        if number != step:
            parts = self.batches.of_step(step)
        counts = torch.stack([p.counts for p in parts]).sum(0).float()
        targets = self.world.add_up(counts.to(self.world.device))
        weights = torch.tensor(self._weights, device=self.world.device)
        mean = self._backward(step, parts, weights / targets.clamp(min=1))
        if step < self.settings.steps:
            # While a GPU still works on this step; its results are only asked for below, all at once.
            self._ahead = step + 1, self.batches.of_step(step + 1)
        self.precision.scaler.unscale_(self.optimizer)
        norm = self.sharing.norm([p.grad for p in self.learned if p.grad is not None])
        loss_now, norm_now, targets_now = torch.stack([mean, norm, targets.sum()]).tolist()
        lr = learning_rate(self.settings, step)
        figures = {"loss": loss_now, "lr": lr, "grad_norm": norm_now, "targets": targets_now}
        self._check_finite(step, loss_now, norm_now)
        if not math.isfinite(norm_now):
            del figures["grad_norm"]
        elif 0 < self.settings.grad_clip < norm_now:
            clip_grads_with_norm_(self.learned, self.settings.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.precision.update(self.optimizer)
        if self._captured is None:
            self.optimizer.zero_grad()
        else:
            self._captured.clear()
        return figures

    def _backward(self, step: int, parts: list[Prepared], scale: Tensor) -> Tensor:
        """Leave the gradients of the step's mean loss in the parameters, and return that loss.

        `scale` (heads,): what the sum over each head's targets counts in it.
        """
        mean = torch.zeros((), device=self.world.device)
        for micro, part in enumerate(parts):
            there = moved(part, self.world.device)
            # What is drawn in a pass, by dropout, follows from the step: going on exactly needs no generator's state.
            seed = seed_of(self.settings.seed, f"pass:{step}:{micro}:{self.world.rank}")
            if self._captured is not None:
                mean += self._captured(there, scale, seed)
                continue
            torch.manual_seed(seed)
            with self.sharing.passing(last=micro == len(parts) - 1):
                mean += self._pass(there, scale)
        return self.world.add_up(mean)

    def _pass(self, there: Prepared, scale: Tensor) -> Tensor:
        """Leave the gradients of one micro batch in the parameters, and return its loss."""
        with self.precision.autocast():
            totals, _ = self.sharing.run(there.inputs, there.targets, there.mask, there.others)
        loss: Tensor = (totals * scale).sum()
        # Processes give the mean of their gradients; the step's is their sum.
        self.precision.backward(loss * self.world.size)
        return loss.detach()

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {step}: the loss is {loss}: training stops, and the last checkpoint and weights stay; lower "
                "train.lr, lengthen train.warmup or look at the data"
            )
        if math.isfinite(norm):
            return
        if not self.precision.scales:
            raise TrainingError(
                f"step {step}: the norm of the gradients is {norm}: training stops, and the last checkpoint and "
                "weights stay; lower train.lr or lengthen train.warmup"
            )
        self.precision.check_scale(step)
