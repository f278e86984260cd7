"""Read all examples once: which are held out, how much text there is, and all that is not text."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.data import Data, Example, Field, ImageField, LabelField, TextField
from ..errors import DataError

TYPES: dict[type[Field], tuple[type, ...]] = {TextField: (str,), ImageField: (np.ndarray,), LabelField: (str, int)}


def is_held_out(key: str, hold_out: float) -> bool:
    """Say whether an example is kept for evaluation: a hash of its key alone, in [0, 1), falls below `hold_out`."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < hold_out


def fields_of(data: Data, kind: type[Field]) -> list[str]:
    """Return the names of the fields that are of a kind, in the order of the declaration."""
    return [name for name, field in data.fields.items() if isinstance(field, kind)]


class Survey:
    """Collect what one reading of the examples tells; `read` fills it.

    `held`: per example, whether it is held out. `text_bytes`: UTF-8 bytes of text on the (training, held-out) side.
    `others`: the values of each image or label field. `digest`: a hash of every key and field.
    """

    def __init__(self, data: Data) -> None:
        self.data = data
        self.held = bytearray()
        self.text_bytes = [0, 0]
        self.others: dict[str, list[Any]] = {
            name: [] for name in (*fields_of(data, ImageField), *fields_of(data, LabelField))
        }
        self._hash = blake2b(digest_size=16)

    def read(self) -> Iterator[str]:
        """Read the examples to the end, yielding the texts of the training side; raise DataError where one is wrong."""
        for example in self.data.examples():
            self._check(example)
            held = is_held_out(example.key, self.data.config.hold_out)
            self.held.append(held)
            self._add(example.key.encode("utf-8", "surrogatepass"))
            for name in self.data.fields:
                value = example.fields[name]
                if isinstance(value, np.ndarray):
                    self._add(np.ascontiguousarray(value).tobytes())
                else:
                    self._add(str(value).encode("utf-8"))
                if name in self.others:
                    self.others[name].append(value)
                else:
                    self.text_bytes[held] += len(str(value).encode("utf-8"))
                    if not held:
                        yield str(value)

    @property
    def digest(self) -> str:
        """A hash of all that was read, in hexadecimal."""
        return self._hash.hexdigest()

    def sides(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the examples for training and of those held out; raise DataError if a side has none."""
        held = np.frombuffer(self.held, np.bool_)
        train, held_out = np.flatnonzero(~held), np.flatnonzero(held)
        share = f"of {len(held)} examples with hold_out {self.data.config.hold_out}"
        if not len(held):
            raise DataError(f"data: `{self.data.name}` gives no examples: {self.data.config}")
        if not len(train):
            raise DataError(f"data.hold_out: {share}, none is left for training: lower it or bring more data")
        if not len(held_out):
            raise DataError(f"data.hold_out: {share}, none is held out: raise it or bring more data")
        return train, held_out

    def _add(self, content: bytes) -> None:
        self._hash.update(len(content).to_bytes(8, "big") + content)

    def _check(self, example: Example) -> None:
        where = f"data: `{self.data.name}`: example {example.key!r:.80}"
        if example.fields.keys() != self.data.fields.keys():
            raise DataError(f"{where}: gives {sorted(example.fields)}, not the declared {sorted(self.data.fields)}")
        for name, field in self.data.fields.items():
            value = example.fields[name]
            if not isinstance(value, TYPES[type(field)]):
                allowed = " or ".join(each.__name__ for each in TYPES[type(field)])
                raise DataError(f"{where}: `{name}` is of type {type(value).__name__}: it must be {allowed}")
            if isinstance(value, np.ndarray) and self.others[name]:
                first = self.others[name][0].shape
                if value.shape != first:
                    raise DataError(f"{where}: `{name}` is {value.shape}, the first is {first}: sizes must agree")
