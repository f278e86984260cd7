"""Row 29: a source of examples gives what it declares, the same in every reading, and says when it has nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...core.data import Data, Example, LabelField, TextField, TokenizerOptions
from ...data import prepare
from ...data.dataset import Dataset
from ...data.survey import TYPES, Survey, is_held_out
from ...errors import DataError
from ..cases import Case
from ..places import Cases, once
from ..registered import row
from ..subjects import Subject
from ..trial import Trial

KINDS = ("data",)
EXAMPLES = 300  # of a source, which may be large
CHARACTERS = 400  # of a text
VOCABULARY = 300


def _source(case: Case) -> Data:
    source: Data = case.part.build()
    return source


class _First(Data):
    """Give the first examples of a source, their texts cut short."""

    def __init__(self, source: Data, count: int) -> None:
        config: Any = source.config
        if config.tokenizer is not None:
            config = replace(config, tokenizer=TokenizerOptions(vocab_size=VOCABULARY))
        super().__init__(replace(config, hold_out=0.25))
        self.name = source.name  # type: ignore[misc]
        self.fields, self.rows = source.fields, source.rows
        self.source, self.count = source, count

    def examples(self) -> Iterator[Example]:
        """Yield the examples."""
        for example in islice(self.source.examples(), self.count):
            cut = {n: v[:CHARACTERS] if isinstance(v, str) else v for n, v in example.fields.items()}
            yield Example(example.key, cut)


@row(29, "examples are what is declared", kinds=KINDS, places=once)
def declared_examples(subject: Subject, trial: Trial) -> None:
    source = _source(subject.case)
    trial.holds(source.fields, "it declares no fields")
    trial.holds(source.rows in ("stream", "examples"), f"its rows are {source.rows!r}, neither stream nor examples")
    texts = [field for field in source.fields.values() if isinstance(field, TextField)]
    trial.holds(source.rows != "stream" or len(texts) == len(source.fields) == 1, "a stream is of one field, of text")
    found = list(islice(source.examples(), trial.size("examples", (EXAMPLES,))))
    trial.holds(found, "it gives no example")
    for example in found:
        trial.holds(isinstance(example.key, str), "a key is no text")
        trial.holds(example.fields.keys() == source.fields.keys(), "an example has other fields than are declared")
        for name, field in source.fields.items():
            value = example.fields[name]
            trial.holds(isinstance(value, TYPES[type(field)]), f"the field {name!r} is of type {type(value).__name__}")
            if isinstance(value, np.ndarray):
                image = value.dtype == np.float32 and value.ndim == 3
                trial.holds(image, f"the image {name!r} is not of float32, (channels, height, width)")
                trial.holds(value.min() >= 0 and value.max() <= 1, f"the image {name!r} is not within [0, 1]")


def _same(one: Example, other: Example) -> bool:
    return one.key == other.key and all(np.array_equal(v, other.fields[n]) for n, v in one.fields.items())


@row(29, "every reading gives the same, in the same order", kinds=KINDS, places=once)
def every_reading(subject: Subject, trial: Trial) -> None:
    count, source = trial.size("examples", (EXAMPLES,)), _source(subject.case)
    random.seed(1)
    before = random.getstate()
    first = list(islice(source.examples(), count))
    trial.holds(random.getstate() == before, "it draws from the random numbers that all share")
    random.seed(2)
    for which, reader in (("again", source), ("by another", _source(subject.case))):
        again = list(islice(reader.examples(), count))
        trial.holds(len(again) == len(first), f"a reading {which} gives another number of examples")
        for one, other in zip(first, again, strict=True):
            trial.holds(_same(one, other), f"a reading {which} gives another example")


@row(29, "the split follows from keys that know no machine", kinds=KINDS, places=once)
def keys(subject: Subject, trial: Trial) -> None:
    source = _source(subject.case)
    found = list(islice(source.examples(), trial.size("examples", (EXAMPLES,))))
    here = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir(), getattr(source.config, "path", None) or ""} - {""}
    for example in found:
        trial.holds(not any(example.key.startswith(place) for place in here), "a key holds a path of this machine")
    share = sum(is_held_out(example.key, 0.5) for example in found) / len(found)
    if len(found) > 30:
        trial.within(abs(share - 0.5), 0.35, "the share of keys on one side, from a half")
    trial.holds(len({example.key for example in found}) > len(found) // 2, "most keys are not their example's own")


def _with_path(cases: Cases) -> Iterator[Subject]:
    return once([case for case in cases[:1] if any(f.name == "path" for f in fields(case.cls.Config))])


def _unless_path(cls: type[Any]) -> str:
    return "" if any(f.name == "path" for f in fields(cls.Config)) else "path: it has no such option"


@row(29, "an empty or missing source is a DataError", kinds=KINDS, places=_with_path, excuse=_unless_path)
def an_empty_source(subject: Subject, trial: Trial) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("missing", "empty"):
            path = Path(folder, name)
            if name == "empty":
                path.mkdir()
            case = Case(subject.case.cls, (*subject.case.options, ("path", str(path))), name)

            def read(case: Case = case) -> None:
                survey = Survey(_source(case))
                for _ in survey.read():
                    pass
                survey.sides()

            trial.raises(DataError, read, f"a source that is {name} is read")


@row(29, "batches hold the declared fields, and follow from their number", kinds=KINDS, places=once)
def batches(subject: Subject, trial: Trial) -> None:
    count = trial.size("examples", (EXAMPLES,), least=20)
    with tempfile.TemporaryDirectory() as folder:
        one, other = (_prepared(subject.case, count, Path(folder, name)) for name in ("one", "other"))
        size = trial.size("batch", (3,))
        want = one.batch(1, size)
        other.batch(5, size)
        again = other.batch(1, size)
        trial.holds(want.keys() == again.keys(), "a batch has other fields in another reading")
        for name, values in want.items():
            trial.holds(np.array_equal(values, again[name]), "a batch does not follow from its number")
        for declared in one.data.fields.values():
            _check_field(trial, declared, want, one)


def _prepared(case: Case, count: int, folder: Path) -> Dataset:
    folder.mkdir()
    return prepare(_First(_source(case), count), folder, lookahead=1, seed=7)


def _check_field(trial: Trial, declared: Any, batch: Any, prepared: Dataset) -> None:
    """Check what a batch holds of one declared field."""
    if isinstance(declared, TextField):
        ids, size = batch[declared.ids], prepared.report.vocab_size
        trial.holds(ids.dtype == np.int64 and ids.ndim == 2, "ids are not (B, T) int64")
        trial.holds(size is not None and ids.min() >= 0 and ids.max() < size, "an id is beyond the tokenizer's")
    elif isinstance(declared, LabelField):
        labels = batch[declared.labels]
        trial.holds(labels.dtype == np.int64 and labels.ndim == 1, "labels are not (B,) int64")
        trial.holds(labels.min() >= 0 and labels.max() < len(prepared.report.classes), "a label is of no class")
    else:
        trial.holds(batch[declared.values].dtype == np.float32, "images are not float32")


OTHER_PROCESS = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
from itertools import islice
cls = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])
print(json.dumps([e.key for e in islice(cls.build(cls.Config(**json.loads(sys.argv[4]))).examples(), 20)]))
"""


def _local(cls: type[Any]) -> str:
    found = getattr(sys.modules.get(cls.__module__), cls.__qualname__, None)
    return "" if found is cls and cls.__module__ != "__main__" else "it stands where no other process can import it"


def _elsewhere(cases: Cases) -> Iterator[Subject]:
    return (Subject(case) for case in cases[:1] if not _local(case.cls))


@row(29, "keys are the same in every process", kinds=KINDS, places=_elsewhere, excuse=_local)
def keys_elsewhere(subject: Subject, trial: Trial) -> None:
    cls = subject.case.cls
    found = [example.key for example in islice(_source(subject.case).examples(), 20)]
    options = json.dumps(dict(subject.case.options))
    # Python's own hashes are others in each process, unless this one was given a seed of them.
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, json.dumps(sys.path), cls.__module__, cls.__qualname__, options],
        env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    trial.holds(done.returncode == 0, f"it can't be read in another process: {done.stderr.strip()[-300:]}")
    trial.holds(json.loads(done.stdout.splitlines()[-1]) == found, "another process gives other keys")
