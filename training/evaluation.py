"""What a model reaches on the held-out data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch

from ..core.initialise import seed_of
from ..core.losses import IGNORED
from ..data import Dataset
from ..registry.settings import TrainSettings
from .precision import Precision
from .processes import World
from .step import Step, moved

LARGEST_EXPONENT = 700.0  # e to this is about the largest float


def measure(
    step: Step, dataset: Dataset, settings: TrainSettings, precision: Precision, world: World
) -> dict[str, float]:
    """Return figures of the whole held-out side, batches shared among the processes.

    `loss`: nats a target. `perplexity`: its exponential, where the objective asks at each token. `accuracy`: the share
    of targets with the largest logit. `bits_per_byte`: where each token of the held-out text is asked for just once.
    Other sums of the objective come as their mean over targets.
    """
    training = step.training
    step.eval()
    mine = defaultdict[str, float](float)
    lengths = torch.from_numpy(dataset.tokenizer.byte_lengths()) if dataset.tokenizer else None
    with torch.no_grad():
        for number, batch in enumerate(dataset.held_out(settings.batch_size)):
            if number % world.size != world.rank:
                continue
            generator = torch.Generator().manual_seed(seed_of(settings.seed, f"evaluation:{number}"))
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            prepared = step.objective.prepare(tensors, generator)
            targets = prepared.targets[prepared.targets != IGNORED]
            if lengths is not None and step.objective.per_token and not step.objective.derives:
                mine["bytes"] += int(lengths[targets].sum())
            there = moved(prepared, world.device)
            with precision.autocast():
                total, sums = step(there.inputs, there.targets, there.mask)
            mine["total"] += total.item()
            mine["targets"] += targets.numel()
            for name, value in sums.items():
                mine[f"sum of {name}"] += value.item()
    step.train(training)
    everyone = world.gather(dict(mine))
    # The first process has the first batch, and so every name that there is.
    added = {name: sum(one.get(name, 0.0) for one in everyone) for name in everyone[0]}
    return _figures(added, dataset, step.objective.per_token and step.objective.logits is None)


def _figures(sums: Mapping[str, float], dataset: Dataset, per_token: bool) -> dict[str, float]:
    targets = max(1, sums["targets"])
    loss = sums["total"] / targets
    figures = {"loss": loss}
    if per_token:
        figures["perplexity"] = math.exp(min(loss, LARGEST_EXPONENT))
    for name, value in sums.items():
        if name.startswith("sum of "):
            name = name.removeprefix("sum of ")
            figures["accuracy" if name == "correct" else name] = value / targets
    if sums.get("bytes", 0.0) in dataset.report.text_bytes.values():
        figures["bits_per_byte"] = sums["total"] / math.log(2) / sums["bytes"]
    return figures
