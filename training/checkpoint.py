"""Checkpoints: all that it takes to go on exactly, whole or not there."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..registry.weights import digest, header_digest, on_cpu, read_tensors
from .disk import put, sha256, sync, write_text

MODEL, OPTIMIZER, TRAINER, MANIFEST = "model.safetensors", "optimizer.safetensors", "trainer.json", "manifest.json"


@dataclass(frozen=True)
class Progress:
    """Say how far a training has come.

    `tokens`: targets learned from. `best`: the lowest held-out loss so far; None before the first evaluation. `stale`:
    evaluations since then. `metrics`: figures of the last evaluation. `scaler`: state of the loss scaling, if any.
    """

    step: int = 0
    tokens: int = 0
    best: float | None = None
    stale: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Hold a checkpoint that was read: every file of it is as it was written."""

    progress: Progress
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class Checkpoints:
    """Keep the checkpoints of a run, `step-00000400/` and so on, in one folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are there, in order."""
        found = (re.fullmatch(r"step-(\d{8,})", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def progress(self) -> Progress:
        """Return how far the newest checkpoint has come; none has come nowhere."""
        steps = self.steps()
        return read_progress(self.path(steps[-1])) if steps else Progress()

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08}"

    def clear(self) -> None:
        """Remove the oldest checkpoints beyond `keep`, and what a stopped process left half written or half removed."""
        for step in self.steps()[: -self.keep]:
            self.path(step).rename(self.folder / f".step-{step:08}.old")
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path)

    def save(self, progress: Progress, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
        """Write a checkpoint, remove the oldest beyond `keep`, and return the new one's folder."""
        place = self.path(progress.step)
        beside = self.folder / f".{place.name}.new"
        beside.mkdir(parents=True)
        write_tensors(beside / MODEL, model)
        write_tensors(beside / OPTIMIZER, optimizer)
        write_text(beside / TRAINER, json.dumps(dataclasses.asdict(progress), indent=2) + "\n")
        sums = {name: sha256(beside / name) for name in (MODEL, OPTIMIZER, TRAINER)}
        write_text(beside / MANIFEST, json.dumps(sums, indent=2) + "\n")
        sync(beside)
        put(beside, place)
        self.clear()
        return place

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint; None where there is none.

        Raises:
            CheckpointError: it is damaged; says which older one is whole.
        """
        steps = self.steps()
        if not steps:
            return None
        try:
            return read(self.path(steps[-1]))
        except CheckpointError as error:
            whole = (step for step in reversed(steps[:-1]) if is_whole(self.path(step)))
            older = next(whole, None)
            way_out = "no older one is whole: start a new run"
            if older is not None:
                way_out = (
                    f"{self.path(older)} is whole: to go on from there, remove the later ones "
                    f"({', '.join(self.path(step).name for step in steps if step > older)})"
                )
            raise CheckpointError(f"{error}\n{way_out}") from None


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint; raise CheckpointError when a file is missing or not what the manifest says."""
    check(folder)
    return Checkpoint(read_progress(folder), read_tensors(folder / MODEL), read_tensors(folder / OPTIMIZER))


def read_progress(folder: Path) -> Progress:
    """Read how far a checkpoint has come; raise CheckpointError when that fails."""
    try:
        return Progress(**json.loads((folder / TRAINER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / TRAINER}: can't be read as a trainer's progress: {error}") from None


def check(folder: Path) -> None:
    """Raise CheckpointError when a file of a checkpoint is missing or not what the manifest says."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        named = set(sums)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: is damaged: {error}") from None
    if named != {MODEL, OPTIMIZER, TRAINER}:
        raise CheckpointError(f"{folder / MANIFEST}: is damaged: it names {', '.join(sorted(map(str, named)))}")
    for name, wanted in sums.items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name}: is damaged: {error.strerror}") from None
        if found != wanted:
            raise CheckpointError(f"{folder / name}: is damaged: its SHA-256 is {found}, and {MANIFEST} says {wanted}")


def is_whole(folder: Path) -> bool:
    """Say whether every file of a checkpoint is as it was written."""
    try:
        check(folder)
    except CheckpointError:
        return False
    return True


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Put a file of weights in its place in one step, a digest of them in its header: readers find the old or the new.

    A folder could not be replaced in one step, which is why one file holds all.
    """
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    kept = on_cpu(tensors)
    save_file(kept, beside, {"format": "pt", "sha256": digest(kept)})
    sync(beside)
    put(beside, path)


def renew_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of weights unless it is there and holds just these."""
    if not path.exists() or header_digest(path) != digest(on_cpu(tensors)):
        write_weights(path, tensors)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors, synced."""
    save_file(on_cpu(tensors), path, {"format": "pt"})
    sync(path)
