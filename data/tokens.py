"""Keep the tokens of many documents, in memory or in a memory-mapped Arrow table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.data import Data, TextField
from ..errors import DataError
from .tokenizer import Tokenizer

IN_MEMORY_BYTES = 1 << 28  # text above this keeps its tokens on disk: 256 MiB of text is about 300 MB of ids
TOGETHER = 256  # documents that are encoded, or written to disk, at a time

Ids = NDArray[np.int32]
Encoded = Mapping[str, Ids]


class Tokens:
    """Hold the ids of documents: `tokens[i]` is document i, cut after `limit` tokens.

    `lengths` (documents,): tokens of each, after the cut. `cut` (documents,): whether a document was longer.
    """

    def __init__(self, chunks: Iterable[tuple[Ids, NDArray[Any]]], limit: int) -> None:
        """Take (values, offsets): document i of a chunk is `values[offsets[i]:offsets[i + 1]]`."""
        self._chunks = list(chunks)
        self._first = np.cumsum([0] + [len(offsets) - 1 for _, offsets in self._chunks])
        lengths = np.concatenate([np.diff(offsets).astype(np.int64) for _, offsets in self._chunks])
        self.cut = lengths > limit
        self.lengths = np.minimum(lengths, limit)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> Ids:
        chunk = int(np.searchsorted(self._first, document, side="right")) - 1
        values, offsets = self._chunks[chunk]
        start = offsets[document - self._first[chunk]]
        return values[start : start + self.lengths[document]]


def encode(data: Data, tokenizer: Tokenizer) -> Iterator[dict[str, Ids]]:
    """Yield the token ids of each example's text fields, with the opening token where declared and the closing one."""
    fields = {name: field for name, field in data.fields.items() if isinstance(field, TextField)}
    bos, eos = tokenizer.vocabulary.bos, tokenizer.vocabulary.eos

    def encoded(batch: list[list[str]]) -> Iterator[dict[str, Ids]]:
        ids = iter(tokenizer.encode_batch([text for texts in batch for text in texts]))
        for _ in batch:
            yield {
                name: np.array([bos, *next(ids), eos] if field.opened else [*next(ids), eos], np.int32)
                for name, field in fields.items()
            }

    batch: list[list[str]] = []
    for example in data.examples():
        batch.append([str(example.fields[name]) for name in fields])
        if len(batch) == TOGETHER:
            yield from encoded(batch)
            batch = []
    yield from encoded(batch)


def in_memory(documents: Iterable[Encoded], names: Sequence[str], limit: int) -> list[Tokens]:
    """Keep the ids of each field in one array."""
    kept: dict[str, list[Ids]] = {name: [] for name in names}
    for document in documents:
        for name in names:
            kept[name].append(document[name])
    return [
        Tokens([(np.concatenate(ids), np.cumsum([0] + [len(each) for each in ids]))], limit) for ids in kept.values()
    ]


def on_disk(
    documents: Callable[[], Iterator[Encoded]], names: Sequence[str], limit: int, cache: Path, digest: str
) -> list[Tokens]:
    """Keep the ids in an Arrow table below `cache` and map it into memory; one of equal `digest` is used again.

    Raises DataError when the table can't be written.
    """
    datasets: Any = import_module("datasets")  # costs a second that most data doesn't need
    features = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in names})
    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_generator(
            documents, features=features, cache_dir=str(cache), fingerprint=digest, writer_batch_size=TOGETHER
        )
    except (datasets.exceptions.DatasetGenerationError, OSError) as error:
        raise DataError(f"{cache}: tokens can't be stored: {error.__cause__ or error}") from None
    finally:
        if not silent:
            datasets.enable_progress_bars()
    return [
        Tokens(
            [
                (chunk.values.to_numpy(zero_copy_only=True), chunk.offsets.to_numpy(zero_copy_only=True))
                for chunk in table.data.column(name).chunks
            ],
            limit,
        )
        for name in names
    ]
