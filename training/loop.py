"""Training: from a spec to a run folder, or on from where a run stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..core.topology import Topology
from ..data import Dataset
from ..registry.compose import compose
from ..registry.spec import Spec
from ..registry.versions import warn_of_changes
from .batches import Batches
from .checkpoint import Checkpoints
from .evaluation import measure
from .events import Event, Report, Started
from .optimizer import freeze
from .precision import Precision
from .processes import World, world
from .run import CHECKPOINTS, AnyRun, Run, load, read_run, settle, workplace
from .setup import check_fit, check_settings, choose_device, compute_twice, initialise_from, prepare_data
from .step import Step
from .trainer import Trainer


def train(spec: Spec, out: str | os.PathLike[str], *, report: Report | None = None) -> Run:
    """Train the model of a spec in the run folder `out`, or go on with it where it was stopped.

    A run that is interrupted at any moment and started again ends with the weights, bit for bit, of one that was not,
    with the same number of CPU threads. `report` is called with each event. Started by `torchrun`, processes share the
    rows of each step; the first one alone writes and reports.

    Raises:
        SpecError: the spec can't be trained, here or at all.
        DataError: its data can't be read, or has changed since the run began.
        CheckpointError: `out` is a run of another spec, or something else, or in use, or its checkpoint is damaged.
        TrainingError: the loss or the gradients are no longer finite; the last checkpoint and weights stay.
    """
    place = Path(out)
    tell = report or _ignore
    with world(choose_device(spec)) as here, undisturbed(spec, here):
        twice = check_settings(spec, here)
        with _claimed(place, spec, here) as folder:
            trainer = _trainer(spec, place, folder, here, tell if here.first else _ignore)
            compute_twice(trainer.model, twice)
            trainer.run()
            here.wait()
        return read_run(place)


@contextmanager
def _claimed(out: Path, spec: Spec, here: World) -> Iterator[Path]:
    """Give where to prepare: the first process works out the run folder, the others come when it is there."""
    if here.first:
        with workplace(out, spec) as folder:
            yield folder
    else:
        here.wait()
        yield out


def _trainer(spec: Spec, out: Path, folder: Path, here: World, tell: Report) -> Trainer:
    """Prepare all that a training needs in `folder`, check it, and only then let `out` be a run."""
    newest = Checkpoints(folder / CHECKPOINTS, spec.train.keep_checkpoints).newest()
    model, tokenizer = compose(spec), None
    freeze(model, spec)
    if newest is not None and here.first:
        warn_of_changes(out, spec)
    if newest is None and spec.train.init is not None:
        done, tokenizer = initialise_from(model, spec.train.init)
        tell(done)
    dataset, objective = prepare_data(spec, folder, tokenizer)
    check_fit(spec, model, objective, dataset)
    batches = Batches(dataset, objective, spec.train, here)
    if here.first:
        settle(folder, out, spec)
        here.wait()
    tell(_started(spec, out, model, here, dataset))
    return Trainer(spec, out, Step(model, objective), batches, newest, tell)


def _started(spec: Spec, out: Path, model: Topology, here: World, dataset: Dataset) -> Started:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    learned = sum(size for size, learns in sizes if learns)
    device = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "cpu"
    return Started(out, spec.train.steps, sum(size for size, _ in sizes), learned, device, str(dataset.report))


def _ignore(event: Event) -> None:
    """Let an event pass."""


@contextmanager
def undisturbed(spec: Spec, here: World) -> Iterator[None]:
    """Use the spec's number of threads for a while, and leave it and the random numbers as they were."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[here.device] if here.device.type == "cuda" else []):
        try:
            if spec.train.threads is not None:
                torch.set_num_threads(spec.train.threads)
            yield
        finally:
            torch.set_num_threads(before)


def evaluate(run: AnyRun) -> dict[str, float]:
    """Measure a run's last good weights on the whole held-out data, in the precision that it trains in.

    `loss`: nats a target. `accuracy`. `perplexity`: where each token is asked for. `bits_per_byte`: where each token of
    a text is asked for just once.

    Raises:
        CheckpointError: the folder is no run, or has no weights.
        DataError: its data can't be read, or has changed.
    """
    found = read_run(run)
    spec = found.spec
    here = World(torch.device(choose_device(spec)))
    with undisturbed(spec, here):
        check_settings(spec, here)
        model = load(found)
        dataset, objective = prepare_data(spec, found.folder)
        step = Step(model, objective).to(here.device)
        precision = Precision(spec.train.precision, here.device)
        precision.convert(step)
        return measure(step, dataset, spec.train, precision, here)
