"""Sources whose examples depend on who reads them, and when."""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path

from planted.fault import planted
from transom.core.data import Example
from transom.registry.manager import get

LABELLED, PAIRS, TEXT = get("data", "labelled"), get("data", "pairs"), get("data", "text")

READ = itertools.count()


@planted(29, "another example")
class OrderOfTheDay(LABELLED):
    """Examples are shuffled without a seed: every reading has another order."""

    def examples(self):
        found = list(super().examples())
        random.Random().shuffle(found)
        return iter(found)


@planted(29, "another example")
class KeyCountsReadings(LABELLED):
    """The key is a running number of the process, where the example's own was meant: sides change between readings."""

    def examples(self):
        for example in super().examples():
            yield Example(f"{next(READ)}", example.fields)


@planted(None)
class KeyIsAPlace(PAIRS):
    """The key is the place in the order, where the pair itself was meant: one pair more moves all that follow."""

    def examples(self):
        for place, example in enumerate(super().examples()):
            yield Example(str(place), example.fields)


@planted(29, "another process gives other keys")
class KeyOfThisProcess(PAIRS):
    """The key is Python's `hash` of the text, which is another in every process: the split is too."""

    def examples(self):
        for example in super().examples():
            yield Example(str(hash(example.fields["source"])), example.fields)


@planted(29, "a path of this machine")
class KeyOfThisMachine(TEXT):
    """The key is the whole path of an unpacked file, where the part below the folder was meant."""

    def examples(self):
        for example in super().examples():
            yield Example(str(Path(tempfile.gettempdir(), "unpacked", example.key)), example.fields)


@planted(29, "other fields than are declared")
class FieldNotGiven(LABELLED):
    """The label is declared, and some examples come without one."""

    def examples(self):
        for place, example in enumerate(super().examples()):
            fields = dict(example.fields)
            if place % 7 == 3:
                del fields["label"]
            yield Example(example.key, fields)


@planted(29, "is not within [0, 1]")
class ImagesOfBytes(LABELLED):
    """Pixels are as they are stored, where shares of the brightest were meant."""

    def examples(self):
        for example in super().examples():
            yield Example(example.key, {**example.fields, "image": example.fields["image"] * 255})


@planted(29, "a source that is missing is read")
class MissingIsEmpty(TEXT):
    """A source that is not there gives a sample in its place, without a word."""

    def examples(self):
        if self.config.path is None or any(Path(self.config.path).glob("*")):
            return super().examples()
        return type(self)(type(self.config)()).examples()
