"""Rows of streamed text: every token is asked for once, and masks appear only where they are needed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from transom.core.data import TextField
from transom.data.packing import first_fit, plan
from transom.data.rows import StreamRows, Text
from transom.data.tokens import Tokens

PAD = 99


def stream(documents: list[list[int]], seq_len: int, lookahead: int) -> StreamRows:
    values = np.array([token for document in documents for token in document], np.int32)
    tokens = Tokens([(values, np.cumsum([0] + [len(document) for document in documents]))], 10**9)
    which = np.arange(len(documents))
    return StreamRows(Text(TextField(), tokens, PAD), which, plan(tokens.lengths, which, seq_len, lookahead))


@given(st.lists(st.integers(2, 61), min_size=1, max_size=23), st.integers(2, 13), st.integers(0, 1))
def test_every_token_is_read_or_asked_for_once(lengths: list[int], seq_len: int, lookahead: int) -> None:
    rows = plan(np.array(lengths), np.arange(len(lengths)), seq_len, lookahead)
    seen = sorted(
        (int(document), position)
        for document, start, stop in rows.pieces
        for position in range(start + lookahead, stop)
    )
    assert seen == [(d, p) for d, length in enumerate(lengths) for p in range(lookahead, length)]


@given(st.lists(st.integers(2, 61), min_size=1, max_size=23), st.integers(2, 13), st.integers(0, 3))
def test_rows_are_full_or_packed_within_their_width(lengths: list[int], seq_len: int, lookahead: int) -> None:
    rows = plan(np.array(lengths), np.arange(len(lengths)), seq_len, lookahead)
    assert set(rows.pieces[:, 0].tolist()) == set(range(len(lengths)))
    for row in range(len(rows)):
        pieces = rows.pieces[rows.first[row] : rows.first[row + 1]]
        filled = int((pieces[:, 2] - pieces[:, 1]).sum())
        if row < rows.n_full:
            assert (len(pieces), filled) == (1, seq_len + lookahead)
        else:
            assert 0 < filled <= seq_len + lookahead


@given(st.lists(st.integers(1, 17), max_size=40))
def test_first_fit_equals_trying_every_row(sizes: list[int]) -> None:
    rows: list[list[int]] = []
    for piece in sorted(range(len(sizes)), key=lambda piece: -sizes[piece]):
        fitting = [row for row in rows if sum(sizes[other] for other in row) + sizes[piece] <= 17]
        if fitting:
            fitting[0].append(piece)
        else:
            rows.append([piece])
    packed = first_fit(np.array(sizes, np.int64), 17)
    assert sorted(piece for row in packed for piece in row) == list(range(len(sizes)))
    assert [[sizes[piece] for piece in row] for row in packed] == [[sizes[piece] for piece in row] for row in rows]


def test_batches_hold_what_their_rows_need() -> None:
    rows = stream([[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 12], [21, 22, 23, 24]], seq_len=3, lookahead=1)
    full = rows.batch(np.array([0, 1, 2]))
    assert {name: array.tolist() for name, array in full.items()} == {
        "input_ids": [[1, 2, 3, 4], [4, 5, 6, 7], [21, 22, 23, 24]]
    }
    # What is left, [7, 8, 9] and [11, 12], does not fit together.
    mixed = rows.batch(np.array([2, 3, 4]))
    assert mixed["input_ids"].tolist() == [[21, 22, 23, 24], [7, 8, 9, PAD], [11, 12, PAD, PAD]]
    assert mixed["document_ids"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]]
    assert mixed["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert len(rows.uneven) == 5
    assert all(array.dtype == np.int64 for array in mixed.values())


def test_packed_rows_without_padding_have_no_mask() -> None:
    batch = stream([[1, 2, 3], [4, 5]], seq_len=5, lookahead=0).batch(np.array([0]))
    assert {name: array.tolist() for name, array in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, 5]],
        "document_ids": [[0, 0, 0, 1, 1]],
    }


def test_a_part_of_a_batch_has_the_names_of_the_whole() -> None:
    rows = stream([[1, 2, 3, 4], [5, 6]], seq_len=3, lookahead=1)
    part = rows.batch(np.array([0, 1]), slice(0, 1))
    assert part["document_ids"].tolist() == [[0, 0, 0, 0]]
    assert part["attention_mask"].tolist() == [[1, 1, 1, 1]]
