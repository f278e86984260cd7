"""Run folders: what a training leaves behind, and how to take it up again."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.topology import Topology
from ..data import Tokenizer, load_tokenizer
from ..errors import CheckpointError
from ..registry.spec import Spec, dump_spec, load_spec
from ..registry.versions import MADE_BY, check_packages, made_by
from ..registry.weights import SPEC, WEIGHTS, load_model
from .checkpoint import Checkpoints
from .disk import locked, put, sync, write_text

CHECKPOINTS, LOCK = "checkpoints", ".lock"


@dataclass(frozen=True)
class Run:
    """Stand for the folder of a run; `spec`: what it was made from."""

    folder: Path
    spec: Spec

    def __fspath__(self) -> str:
        """Return the folder, so that a run goes wherever a path does."""
        return os.fspath(self.folder)

    @property
    def step(self) -> int:
        """How far it has come, by its newest checkpoint; raise CheckpointError when that can't be read."""
        return self._checkpoints.progress().step

    @property
    def metrics(self) -> Mapping[str, float]:
        """The figures of the last evaluation, as `evaluate` gives them; empty before it. Raise as `step` does."""
        return self._checkpoints.progress().metrics

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None for data without text. Raise DataError when it can't be read."""
        return load_tokenizer(self.folder) if (self.folder / "tokenizer.json").exists() else None

    @property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / CHECKPOINTS, self.spec.train.keep_checkpoints)


AnyRun = Run | str | os.PathLike[str]


def read_run(run: AnyRun) -> Run:
    """Read what a run folder was made from.

    Raises:
        CheckpointError: it is no run.
        PluginError: a package that it was made with is not installed here.
        SpecError: its spec can't be read.
    """
    if isinstance(run, Run):
        return run
    folder = Path(run)
    if not (folder / SPEC).is_file():
        raise CheckpointError(f"{folder}: is no run: it has no {SPEC}{_near(folder)}")
    check_packages(folder)
    return Run(folder, load_spec(folder / SPEC))


def load(run: AnyRun) -> Topology:
    """Return a run's model with its last good weights, on CPU in fp32, ready to be used (eval mode).

    Raises:
        CheckpointError: the folder is no run, has no weights yet, or they are damaged or of another model.
        PluginError: a package that it was made with is not installed here; other versions are a `TransomWarning`.
    """
    return load_model(read_run(run).folder)


def check_place(out: Path, spec: Spec) -> bool:
    """Say whether a run folder of this very spec is there already; False where nothing is.

    Raises:
        CheckpointError: a run of another spec is there, with the difference line by line, or something else is.
    """
    if not (out / SPEC).is_file():
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise CheckpointError(f"{out}: is there already, and is no run: choose another folder, or remove it")
        return False
    before, now = (out / SPEC).read_text(encoding="utf-8"), dump_spec(spec)
    # An older spec may say the same in other words: with options that have new names by now, or without new ones. How
    # processes share a model is their matter: what is written is the same.
    if before != now and _unshared(load_spec(out / SPEC)) != _unshared(spec):
        lines = difflib.unified_diff(before.splitlines(), now.splitlines(), f"{out / SPEC}", "this spec", lineterm="")
        raise CheckpointError(
            f"{out}: holds a run of another spec; choose another folder, or undo the difference:\n" + "\n".join(lines)
        )
    if (out / WEIGHTS).exists() and not Checkpoints(out / CHECKPOINTS, 1).steps():
        raise CheckpointError(
            f"{out}: has weights but no checkpoint to go on from: name it as train.init of a run in another folder"
        )
    return True


def _unshared(spec: Spec) -> Mapping[str, Any]:
    train = {name: value for name, value in spec.resolved["train"].items() if name != "shard"}
    return {**spec.resolved, "train": train}


@contextmanager
def workplace(out: Path, spec: Spec) -> Iterator[Path]:
    """Hold a run's folder against other processes, and give where to work: in it, or beside it until `settle`.

    What lies beside is removed when the block ends before it was settled, and folders that were made for it.

    Raises:
        CheckpointError: as `check_place` does, or another process is at work there.
    """
    out = out.resolve()
    if check_place(out, spec):
        with locked(out / LOCK, str(out)):
            yield out
        return
    beside = out.with_name(f".{out.name}.new")
    made = [folder for folder in beside.parents if not folder.exists()]
    beside.mkdir(parents=True, exist_ok=True)
    with locked(beside / LOCK, str(out)):
        if check_place(out, spec):
            raise CheckpointError(f"{out}: another process has just begun to train there: wait for it, or stop it")
        _empty(beside)
        try:
            yield beside
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            for folder in made:
                with suppress(OSError):  # it holds the run, or something else by now
                    folder.rmdir()


def settle(beside: Path, out: Path, spec: Spec) -> None:
    """Make what was prepared in `beside` the run folder `out`, in one step."""
    if beside == out.resolve():
        return
    write_text(beside / SPEC, dump_spec(spec))
    write_text(beside / MADE_BY, json.dumps(made_by(spec), indent=2) + "\n")
    sync(beside)
    put(beside, out.resolve())


def _empty(folder: Path) -> None:
    """Remove all but the lock, which a process that stopped has left."""
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _near(folder: Path) -> str:
    """Name the run that a wrong path may mean."""
    parent = folder.parent
    runs = [path.parent.name for path in parent.glob(f"*/{SPEC}")] if parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, runs, n=1)
    return f" (did you mean {parent / near[0]}?)" if near else ""
