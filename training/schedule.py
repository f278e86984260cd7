"""The learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..registry.settings import TrainSettings


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Return the learning rate of step `step`, from 1 to `settings.steps`.

    It rises linearly over `warmup` steps, of which the last has the full `lr`, and then follows the schedule; cosine
    (Loshchilov and Hutter 2017) and linear end at `min_lr_ratio` of it in the last step.
    """
    if step <= settings.warmup:
        return settings.lr * step / settings.warmup
    return settings.lr * SCHEDULES[settings.schedule](settings, step)


def progress(settings: TrainSettings, step: int) -> float:
    """Return how much of the way from the end of the warm-up to the last step is done, from 0 to 1."""
    return (step - settings.warmup) / max(1, settings.steps - settings.warmup)


def cosine(settings: TrainSettings, step: int) -> float:
    """Fall along half a cosine."""
    least = settings.min_lr_ratio
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress(settings, step)))


def linear(settings: TrainSettings, step: int) -> float:
    """Fall along a line."""
    return 1 - (1 - settings.min_lr_ratio) * progress(settings, step)


def inverse_sqrt(settings: TrainSettings, step: int) -> float:
    """Fall with the square root of the step, from the end of the warm-up on (Vaswani et al. 2017)."""
    return math.sqrt(max(1, settings.warmup) / step)


def constant(settings: TrainSettings, step: int) -> float:
    """Stay."""
    return 1.0


SCHEDULES: dict[str, Callable[[TrainSettings, int], float]] = {
    "cosine": cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
    "constant": constant,
}
