"""What a model reaches on the held-out data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from ..core.initialise import seed_of
from ..core.losses import IGNORED
from ..core.objective import Objective
from ..data import Dataset
from ..data.rows import Batch
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
    Other sums of the objective come as their mean over targets. Where it asks several heads, `loss` is the sum of their
    means times their weights, and the figures of each begin with its name: `words_loss`, `words_accuracy`.
    """
    training = step.training
    step.eval()
    mine = defaultdict[str, float](float)
    parts = step.objective.heads(step.objective.config)
    heads = [f".{name}" for name in parts] or [""]
    lengths = torch.from_numpy(dataset.tokenizer.byte_lengths()) if dataset.tokenizer else None
    with torch.no_grad():
        for number, batch, ours in _dealt(dataset.held_out(settings.batch_size), world):
            generator = torch.Generator().manual_seed(seed_of(settings.seed, f"evaluation:{number}"))
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            prepared = step.objective.prepare(tensors, generator)
            if lengths is not None and ours and step.objective.per_token and not step.objective.derives:
                mine["bytes"] += int(lengths[prepared.targets[prepared.targets != IGNORED]].sum())
            there = moved(prepared, world.device)
            with precision.autocast():
                totals, sums = step(there.inputs, there.targets, there.mask, there.others)
            if not ours:
                continue
            for head, total, count in zip(heads, totals.tolist(), prepared.counts.tolist(), strict=True):
                mine[f"total{head}"] += total
                mine[f"targets{head}"] += count
            for name, value in sums.items():
                mine[f"sum of {name}"] += value.item()
    step.train(training)
    everyone = world.gather(dict(mine))
    # The first process has the first batch, and so every name that there is.
    added = {name: sum(one.get(name, 0.0) for one in everyone) for name in everyone[0]}
    return _figures(added, dataset, step.objective, heads)


def _dealt(batches: Iterable[Batch], world: World) -> Iterator[tuple[int, Batch, bool]]:
    """Yield the batches of this process with their numbers, and whether each is its own.

    Where the last ones are not enough for all, the others have the very last one too, for its passes alone: processes
    that share weights run them together.
    """
    last: tuple[int, Batch] | None = None
    for number, batch in enumerate(batches):
        last = number, batch
        if number % world.size == world.rank:
            yield number, batch, True
    if last is not None and last[0] % world.size < world.rank:
        yield *last, False


def _figures(
    sums: Mapping[str, float], dataset: Dataset, objective: Objective, heads: Sequence[str]
) -> dict[str, float]:
    """Return the figures; `heads`: the endings of the sums of each head."""
    targets = {head: max(1, sums[f"targets{head}"]) for head in heads}
    losses = [sums[f"total{head}"] / targets[head] for head in heads]
    loss = sum(weight * each for weight, each in zip(objective.weights, losses, strict=True))
    figures = {"loss": loss}
    if len(heads) > 1:
        figures |= {f"{head[1:]}_loss": each for head, each in zip(heads, losses, strict=True)}
    elif objective.per_token and objective.logits is None:
        figures["perplexity"] = math.exp(min(loss, LARGEST_EXPONENT))
    for name, value in sums.items():
        if name.startswith("sum of "):
            head, _, name = name.removeprefix("sum of ").rpartition(".")
            name = "accuracy" if name == "correct" else name
            figures[f"{head}_{name}" if head else name] = value / targets[f".{head}" if head else ""]
    if sums.get("bytes", 0.0) in dataset.report.text_bytes.values():
        figures["bits_per_byte"] = sums[f"total{heads[0]}"] / math.log(2) / sums["bytes"]
    return figures
