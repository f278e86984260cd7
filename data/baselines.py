"""What simple means reach on the held-out text, for a model to beat: n-gram models and general compressors."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .dataset import Dataset
from .rows import StreamRows

WEIGHT = 0.85  # of the bigram's share in the interpolated model; the unigram model has the rest
BLOCK = 1 << 22  # tokens that are counted at a time

Ints = NDArray[np.int64]


def bits_per_byte(dataset: Dataset) -> dict[str, float]:
    """Return bits per byte of the held-out text by `unigram`, `bigram`, `gzip` and `xz`.

    The models are fitted on the training side and predict every token but the first of a document, as a language model
    does. The unigram model adds one to each token's count. The bigram model interpolates with it (Jelinek and Mercer,
    1980): p(b | a) = WEIGHT count(a, b) / count(a) + (1 - WEIGHT) p(b), and p(b) alone after an `a` that never came.
    `gzip` (level 9) and `xz` (preset 9) compress the held-out documents' bytes, joined.

    Raises DataError for data that is not a stream of text.
    """
    train, held_out = dataset.train_rows, dataset.held_out_rows
    if not (isinstance(train, StreamRows) and isinstance(held_out, StreamRows) and dataset.vocabulary):
        raise DataError(f"data: `{dataset.data.name}` is no stream of text, which the baselines are made for")
    size = dataset.vocabulary.size
    text = "".join(dataset.held_out_texts(next(iter(dataset.data.fields)))).encode("utf-8")

    singles = np.ones(size)
    pairs = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for before, token in transitions(train):
        singles += np.bincount(token, minlength=size)
        pairs = merged(pairs, np.unique(before * size + token, return_counts=True))
    unigram = singles / singles.sum()
    codes, counts = pairs
    context = np.bincount(codes // size, weights=counts, minlength=size)

    bits = np.zeros(2)
    for before, token in transitions(held_out):
        place = np.searchsorted(codes, before * size + token)
        place[place == len(codes)] = 0
        seen = np.where(codes[place] == before * size + token, counts[place], 0)
        weight = np.where(context[before] > 0, WEIGHT, 0.0)
        bigram = weight * seen / np.maximum(context[before], 1) + (1 - weight) * unigram[token]
        bits -= np.log2(unigram[token]).sum(), np.log2(bigram).sum()
    return {
        "unigram": float(bits[0]) / len(text),
        "bigram": float(bits[1]) / len(text),
        "gzip": 8 * len(gzip.compress(text, 9, mtime=0)) / len(text),
        "xz": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }


def transitions(rows: StreamRows) -> Iterator[tuple[Ints, Ints]]:
    """Yield (tokens, their successors) of the documents, block by block, none from one document to another."""
    before, after, held = list[Ints](), list[Ints](), 0
    for document in rows.documents:
        ids = rows.text.tokens[document].astype(np.int64)
        before.append(ids[:-1])
        after.append(ids[1:])
        held += len(ids)
        if held >= BLOCK:
            yield np.concatenate(before), np.concatenate(after)
            before, after, held = [], [], 0
    if before:
        yield np.concatenate(before), np.concatenate(after)


def merged(first: tuple[Ints, Ints], second: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    """Return the sum of two counts, each as (sorted codes, their counts)."""
    codes, place = np.unique(np.concatenate([first[0], second[0]]), return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate([first[1], second[1]]))
    return codes, counts.astype(np.int64)
