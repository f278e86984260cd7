"""Cut documents into rows of equal length, and pack what remains of them."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Say what each row holds: row r is `pieces[first[r]:first[r + 1]]`, each a (document, start, stop) of tokens.

    `width`: tokens in a row. The rows from `n_full` on are packed: they hold several pieces, or one that leaves room.
    """

    width: int
    pieces: Ints
    first: Ints
    n_full: int

    def __len__(self) -> int:
        return len(self.first) - 1


def plan(lengths: Ints, documents: Ints, seq_len: int, lookahead: int) -> Plan:
    """Lay out documents in rows of `seq_len + lookahead` tokens.

    A long document's rows begin `seq_len` tokens apart, so that with a lookahead of 1 each of its tokens but the first
    is the successor of a token in exactly one row. What is left of each document is packed with other remainders.

    `lengths`: tokens of every document there is; `documents`: the numbers of those to lay out.
    """
    width = seq_len + lookahead
    sizes = lengths[documents]
    n_rows = np.maximum(0, (sizes - width) // seq_len + 1)
    owner = np.repeat(np.arange(len(documents)), n_rows)
    start = (np.arange(len(owner)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)) * seq_len
    full = np.stack([documents[owner], start, start + width], 1)

    rest = n_rows * seq_len
    # The last `lookahead` tokens of a full row have been seen in it, and predicted: alone they teach nothing.
    left = np.flatnonzero((sizes - rest > lookahead) | (n_rows == 0))
    remainders = np.stack([documents[left], rest[left], sizes[left]], 1)
    packed = first_fit(remainders[:, 2] - remainders[:, 1], width)
    order = np.array([piece for row in packed for piece in row], np.int64)
    counts = np.array([1] * len(full) + [len(row) for row in packed], np.int64)
    return Plan(width, np.concatenate([full, remainders[order]]), np.concatenate([[0], np.cumsum(counts)]), len(full))


def first_fit(sizes: Ints, room: int) -> list[list[int]]:
    """Pack pieces of given sizes, each in [1, room], into rows: first-fit decreasing, equal sizes in their order.

    Filling row after row with the longest piece that still fits gives the same rows as trying every row for each piece.
    """
    waiting: dict[int, list[int]] = {}
    for piece in reversed(range(len(sizes))):
        waiting.setdefault(int(sizes[piece]), []).append(piece)
    left = sorted(waiting)
    rows = []
    while left:
        row, free = list[int](), room
        while place := bisect_right(left, free):
            size = left[place - 1]
            row.append(waiting[size].pop())
            free -= size
            if not waiting[size]:
                del left[place - 1]
        rows.append(row)
    return rows
