"""Read tokens into what a stepper remembers: what waits for each row of a batch, padded to one call."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from .rows import Row
from .sampling import Ids

Logits = NDArray[np.float32]
State = Any  # what a stepper remembers; it is handed on, and nobody looks inside


class Stepper(Protocol):
    """Stand for whatever turns tokens and a state into logits: a torch module, an ONNX session, a table of counts."""

    @property
    def max_seq_len(self) -> int:
        """Say how many valid tokens a row may hold; padding does not count."""

    @property
    def vocab_size(self) -> int:
        """Say how many token ids there are: 0 to vocab_size - 1."""

    def start(self, batch: int) -> State:
        """Give the empty state of `batch` rows."""

    def step(self, input_ids: Ids, attention_mask: Ids | None, state: State) -> tuple[Logits, State]:
        """Take in tokens and give the logits (B, V) that follow each row's last valid one, with the next state.

        The state passed in is used up, unless this is a `Scorer`: the loop does not pass it twice.

        Args:
            input_ids: (B, T); the whole prompts in the first call, one column in later ones, or a few with a draft.
            attention_mask: (B, T), 1 at tokens and 0 at the padding on their right; None when there is no padding. A
                row that has ended is all padding: nothing may change for the others, and its logits are not read.
            state: what `start` or the step before gave.
        """


class Scorer(Stepper, Protocol):
    """Stand for a stepper that also tells what follows every token, and can go back: one that a draft serves.

    The state that a call is given stays as it was, for `rewind`.
    """

    def score(self, input_ids: Ids, attention_mask: Ids | None, state: State) -> tuple[Logits, State]:
        """Do as `step` does, and give the logits (B, T, V) that follow each token; at padding they are not read."""

    def rewind(self, state: State, dropped: Ids, before: State, input_ids: Ids, attention_mask: Ids) -> State:
        """Return the state without the last `dropped` (B,) tokens of each row.

        Args:
            state: what came of `before` and the tokens input_ids (B, T) with attention_mask (B, T), taken in by one
                call or several.
            dropped: for each row at most as many as it has in `attention_mask`, whose padding may stand anywhere.
            before: a state that nothing is dropped of, for who must go on from it.
            input_ids: the tokens since `before`.
            attention_mask: which of them are some.
        """


class Reader:
    """Keep a stepper's state, and for each row the tokens that are not in it yet.

    `waiting`: those tokens; what is read of a row is taken out.
    """

    def __init__(self, stepper: Stepper, prompts: Sequence[Sequence[int]]) -> None:
        self.waiting = [list(prompt) for prompt in prompts]
        self.edges: Collection[int] = getattr(stepper, "edges", ())  # beyond these lengths rows are read anew
        self._stepper = stepper
        self._state = stepper.start(len(self.waiting))
        self._before: State = None
        self._since: list[tuple[Ids, Ids]] | None = None  # what was read since `mark`, where somebody marks

    def read(self, rows: Collection[int] | None = None) -> Logits:
        """Take in what waits, of some rows only where they are given, and return the logits (B, V) that follow."""
        ids, mask = self._taken(rows)
        logits, self._state = self._stepper.step(ids, None if mask.all() else mask, self._state)
        return logits

    def score(self) -> Logits:
        """Take in what waits and return the logits (B, T, V) that follow each token, a row's first in column 0."""
        ids, mask = self._taken(None)
        logits, self._state = cast(Scorer, self._stepper).score(ids, None if mask.all() else mask, self._state)
        return logits

    def mark(self) -> None:
        """Remember where to go back to: `forget` drops none of the tokens that were read before."""
        self._before, self._since = self._state, []

    def forget(self, dropped: Sequence[int]) -> None:
        """Go back by so many tokens of each row, which were read since `mark`."""
        if any(dropped):
            assert self._since is not None, "mark comes first"
            ids, mask = (np.concatenate(part, axis=1) for part in zip(*self._since, strict=True))
            scorer = cast(Scorer, self._stepper)
            self._state = scorer.rewind(self._state, np.array(dropped, dtype=np.int64), self._before, ids, mask)

    def cross(self, rows: Sequence[Row], edges: Collection[int] | None = None) -> None:
        """Begin anew, with all tokens of the rows, where the newest of one stands beyond a length of `edges`."""
        edges = self.edges if edges is None else edges
        if edges and any(row.length - 1 in edges for row in rows if row.ended is None):
            self.waiting = [row.tokens if row.ended is None else [] for row in rows]
            self._state = self._stepper.start(len(rows))

    def _taken(self, rows: Collection[int] | None) -> tuple[Ids, Ids]:
        taken = [tokens if rows is None or row in rows else [] for row, tokens in enumerate(self.waiting)]
        self.waiting = [[] if new else tokens for new, tokens in zip(taken, self.waiting, strict=True)]
        padded = _pad(taken)
        if self._since is not None:
            self._since.append(padded)
        return padded


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Give input_ids and attention_mask (B, T) of rows of tokens, padded on the right."""
    longest = max(1, *map(len, rows))
    ids = np.array([[*row, *[0] * (longest - len(row))] for row in rows], dtype=np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=np.int64)
    return ids, mask
