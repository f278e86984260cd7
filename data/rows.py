"""Turn numbered rows into batches of numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.data import ImageField, LabelField, TextField
from .packing import Ints, Plan
from .tokens import Tokens

Batch = dict[str, NDArray[Any]]
ALL = slice(None)


@dataclass(frozen=True)
class Text:
    """Hold a field of text, the tokens of all examples, and the id that fills up a row."""

    field: TextField
    tokens: Tokens
    pad: int


class Rows(Protocol):
    """Stand for one side of the data; `uneven` (rows,) marks the rows that make their whole batch cost more."""

    uneven: NDArray[np.bool_]

    def batch(self, rows: Ints, part: slice = ALL) -> Batch:
        """Return a part of the batch that the rows make together; the names in it and its widths suit them all."""


class StreamRows:
    """Give rows that were cut from a stream of documents, (B, seq_len + lookahead).

    A batch of rows that are each full of one document holds the token ids alone. Any other batch also holds
    `document_ids`, which count a row's documents from 0, its padding as one more, and a mask where there is padding.
    """

    def __init__(self, text: Text, documents: Ints, plan: Plan) -> None:
        self.text = text
        self.documents = documents
        self.uneven = np.arange(len(plan)) >= plan.n_full
        self._plan = plan
        sizes = plan.pieces[:, 2] - plan.pieces[:, 1]
        self._filled = np.add.reduceat(sizes, plan.first[:-1]) if len(plan) else sizes

    def batch(self, rows: Ints, part: slice = ALL) -> Batch:
        """Return the batch; see `Rows`."""
        mine = rows[part]
        ids = np.full((len(mine), self._plan.width), self.text.pad, np.int64)
        documents = np.zeros_like(ids)
        for row, number in enumerate(mine):
            end = 0
            pieces = self._plan.pieces[self._plan.first[number] : self._plan.first[number + 1]]
            for document, start, stop in pieces:
                ids[row, end : end + stop - start] = self.text.tokens[document][start:stop]
                end += stop - start
                documents[row, end:] += 1
        batch: Batch = {self.text.field.ids: ids}
        if self.uneven[rows].any():
            batch["document_ids"] = documents
        if (self._filled[rows] < self._plan.width).any():
            batch[self.text.field.mask] = (np.arange(self._plan.width) < self._filled[mine, None]).astype(np.int64)
        return batch


class Column(Protocol):
    """Stand for one field of the examples."""

    def batch(self, examples: Ints, part: slice) -> Batch:
        """Return this field's arrays for a part of the examples that make a batch."""


class TextColumn:
    """Give texts as (B, T) ids and mask, T the longest of the batch."""

    def __init__(self, text: Text) -> None:
        self._text = text

    def batch(self, examples: Ints, part: slice) -> Batch:
        """Return this field's arrays; see `Column`."""
        text = self._text
        lengths = text.tokens.lengths[examples]
        mask = (np.arange(lengths.max(initial=0)) < lengths[part, None]).astype(np.int64)
        ids = np.full_like(mask, text.pad)
        for row, example in enumerate(examples[part]):
            ids[row, : lengths[part][row]] = text.tokens[example]
        return {text.field.ids: ids, text.field.mask: mask}


class ArrayColumn:
    """Give values that are the same in shape for all examples: images (B, channels, height, width) or labels (B,)."""

    def __init__(self, name: str, values: NDArray[Any]) -> None:
        self._name = name
        self._values = values

    @classmethod
    def of_images(cls, field: ImageField, images: Sequence[NDArray[Any]]) -> ArrayColumn:
        """Hold images in memory, as float32."""
        return cls(field.values, np.stack(images).astype(np.float32, copy=False))

    @classmethod
    def of_labels(cls, field: LabelField, labels: Sequence[str | int], classes: Sequence[str]) -> ArrayColumn:
        """Hold the place of each label among the classes, as int64."""
        place = {name: number for number, name in enumerate(classes)}
        return cls(field.labels, np.array([place[str(label)] for label in labels], np.int64))

    def batch(self, examples: Ints, part: slice) -> Batch:
        """Return this field's array; see `Column`."""
        return {self._name: self._values[examples[part]]}


class ExampleRows:
    """Give each example a row of its own."""

    def __init__(self, columns: Sequence[Column], examples: Ints) -> None:
        self.columns = columns
        self.examples = examples
        self.uneven = np.zeros(len(examples), np.bool_)

    def batch(self, rows: Ints, part: slice = ALL) -> Batch:
        """Return the batch; see `Rows`."""
        batch: Batch = {}
        for column in self.columns:
            batch |= column.batch(self.examples[rows], part)
        return batch
