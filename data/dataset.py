"""Batches of prepared data, each a function of its number, and what there is to say about both sides of the split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..core.data import Data
from ..core.vocabulary import Vocabulary
from ..errors import DataError
from .packing import Ints
from .rows import Batch, Rows
from .survey import is_held_out
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Side:
    """Count one side of the split: examples, their text's UTF-8 bytes and tokens, rows, and texts cut at `seq_len`."""

    examples: int
    bytes: int
    tokens: int
    rows: int
    cut: int


@dataclass(frozen=True)
class Report:
    """Describe prepared data.

    `vocab_size`: tokens of the tokenizer, None without text. `classes`: names of the labels in the order of their ids.
    `text_bytes`: UTF-8 bytes of the held-out text that is in rows, by the name that its ids have in a batch: what a
    loss is divided by to give bits per byte.
    """

    train: Side
    held_out: Side
    vocab_size: int | None
    classes: tuple[str, ...]
    text_bytes: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values that JSON can hold."""
        return {**asdict(self), "classes": list(self.classes), "text_bytes": dict(self.text_bytes)}

    def __str__(self) -> str:
        def line(name: str, side: Side) -> str:
            text = f", {side.bytes:,} bytes, {side.tokens:,} tokens" if self.vocab_size else ""
            cut = f", {side.cut:,} texts cut at seq_len" if side.cut else ""
            return f"{name}: {side.examples:,} examples{text}, {side.rows:,} rows{cut}"

        return f"{line('train', self.train)}\n{line('held out', self.held_out)}"


class Dataset:
    """Give batches of prepared data, as dicts of numpy arrays.

    Stream of text, T = seq_len + lookahead: `input_ids` (B, T) int64; where rows hold several documents or padding also
    `document_ids` (B, T) int64, and where there is padding `attention_mask` (B, T) int64, 1 at tokens.
    Rows of examples: by declared field, ids and masks (B, longest), images (B, channels, height, width) float32, labels
    (B,) int64. A text ends with `<|end|>` unless it was cut, and begins with it where its field says so.
    """

    def __init__(
        self, data: Data, tokenizer: Tokenizer | None, train: Rows, held_out: Rows, report: Report, seed: int
    ) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.train_rows = train
        self.held_out_rows = held_out
        self.report = report
        self.seed = seed
        self._order: tuple[tuple[int, int], Ints] = ((-1, -1), np.zeros((0, 0), np.int64))

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The ids that the tokenizer gives; None for data without text."""
        return self.tokenizer.vocabulary if self.tokenizer else None

    def batches_per_epoch(self, batch_size: int, world: int = 1) -> int:
        """Return how many batches make an epoch; the rows that fill none (others in each epoch) are left out of it.

        Raises DataError when the training side has too few rows for one batch.
        """
        rows, wanted = len(self.train_rows.uneven), batch_size * world
        if rows < wanted:
            raise DataError(
                f"train.batch_size: {batch_size} for {world} process(es) takes {wanted} rows, and the training side "
                f"has {rows}: lower batch_size or seq_len, or bring more data"
            )
        return rows // wanted

    def batch(self, index: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Return batch number `index` of the training side, from 0 without end.

        It follows from the seed, `index`, `batch_size`, `rank` and `world` alone: the processes' batches joined by rank
        are the batch of one process that takes `batch_size * world`. Raises DataError as `batches_per_epoch` does.
        """
        epoch, place = divmod(index, self.batches_per_epoch(batch_size, world))
        rows = self._epoch(epoch, batch_size * world)[place]
        return self.train_rows.batch(rows, slice(rank * batch_size, (rank + 1) * batch_size))

    def held_out(self, batch_size: int) -> Iterator[Batch]:
        """Yield the whole held-out side in order; the last batch may be smaller."""
        rows = np.arange(len(self.held_out_rows.uneven))
        for start in range(0, len(rows), batch_size):
            yield self.held_out_rows.batch(rows[start : start + batch_size])

    def held_out_texts(self, field: str) -> Iterator[str]:
        """Read the held-out examples again, yielding a field of text."""
        for example in self.data.examples():
            if is_held_out(example.key, self.data.config.hold_out):
                yield str(example.fields[field])

    def _epoch(self, epoch: int, size: int) -> Ints:
        """Return the rows of an epoch's batches (batches, size), keeping rows that need a mask among themselves."""
        if self._order[0] != (epoch, size):
            rng = np.random.default_rng([self.seed, epoch])
            uneven = self.train_rows.uneven
            rows = rng.permutation(len(uneven))[: len(uneven) // size * size]
            grouped = np.concatenate([rows[~uneven[rows]], rows[uneven[rows]]]).reshape(-1, size)
            self._order = ((epoch, size), rng.permutation(grouped))
        return self._order[1]
