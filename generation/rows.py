"""Gather what each row of a batch writes: its tokens, its text as it becomes sure, and why it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .sampling import Sampling

Ended = Literal["eos", "stop", "length", "full"]
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Generation:
    """Hold what one row wrote.

    `ids` are the tokens chosen, without the prompt and without eos. `text` is their text (None when no `decode` was
    given), which ends before the stop string although `ids` hold the tokens that spell it. `ended` says why there is
    no more: "eos" and "stop" as asked for, "length" at `max_new_tokens`, "full" when prompt and output fill
    `max_seq_len`.
    """

    ids: list[int]
    text: str | None
    ended: Ended


@dataclass(frozen=True)
class Piece:
    """Hold what one row wrote in one step.

    `ids`: the tokens that were chosen: one, or several at once with a draft; an eos is none. `text`: what is now sure
    of its text and was not before: whole characters, never a part of a stop string; the texts of a row's pieces make up
    its `text`, and without a `decode` they are empty. `result`: all that the row wrote, with its last piece.
    """

    row: int
    ids: tuple[int, ...]
    text: str
    result: Generation | None


class Row:
    """Gather one row's tokens and know when it has ended."""

    def __init__(self, prompt: list[int], copy: int, sampling: Sampling, max_seq_len: int, text: Text | None) -> None:
        self.prompt = prompt
        self.ids: list[int] = []
        self.ended: Ended | None = None
        self._random = np.random.default_rng([sampling.seed, copy, *prompt])
        self._drawn: deque[float] = deque()  # random numbers of tokens to come
        self._sampling = sampling
        self._eos_ids = sampling.eos_ids
        self._room = max_seq_len - len(prompt)
        self._told = 0  # tokens of ids that were in a piece
        self._text = text
        if self._room == 0:
            self.ended = "full"

    @property
    def tokens(self) -> list[int]:
        """Return prompt and output."""
        return self.prompt + self.ids

    @property
    def length(self) -> int:
        """Return how many tokens `tokens` has."""
        return len(self.prompt) + len(self.ids)

    @property
    def left(self) -> int:
        """Return how many tokens the row may still get."""
        return min(self._room, self._sampling.max_new_tokens) - len(self.ids)

    def uniform(self, ahead: int = 0) -> float:
        """Return the random number in [0, 1) that the next token is drawn by, or the one so many further `ahead`."""
        while len(self._drawn) <= ahead:
            self._drawn.append(self._random.random())
        return self._drawn[ahead]

    def take(self, token: int) -> None:
        """Add a token, with whose random number the row is done, and end it where that is due."""
        if self._drawn:
            self._drawn.popleft()
        if token in self._eos_ids:
            self.ended = "eos"
        else:
            self.ids.append(token)
            if self._text is not None and self._text.grow(self.ids):
                self.ended = "stop"
            elif len(self.ids) == self._sampling.max_new_tokens:
                self.ended = "length"
            elif len(self.ids) == self._room:
                self.ended = "full"
        if self._text is not None and self.ended is not None:
            self._text.close(self.ids)

    def piece(self, index: int) -> Piece:
        """Return what has come since the last piece; `index` is the row's."""
        new, self._told = tuple(self.ids[self._told :]), len(self.ids)
        text = "" if self._text is None else self._text.piece()
        return Piece(index, new, text, None if self.ended is None else self._result(self.ended))

    def _result(self, ended: Ended) -> Generation:
        return Generation(self.ids, None if self._text is None else self._text.so_far, ended)


class Text:
    """Turn one row's growing tokens into text, and give each piece as soon as nothing can take it back.

    Only a window of the last tokens is decoded again at each step. It begins with tokens whose text is known, because
    some decoders treat the first token of a text apart (they drop its leading space).
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...], watched: bool) -> None:
        self.so_far = ""
        self._decode = decode
        self._stop = stop
        self._watched = watched
        self._stopped = False
        self._sure = 0  # characters of so_far that nothing can take back
        self._given = 0  # and those that were in a piece
        self._start = 0  # the window's first token
        self._next_start = 0  # where the window can begin once more text has come
        self._known = 0  # characters of the window's text that are in so_far

    def grow(self, ids: list[int]) -> bool:
        """Take in the text of the newest token and say whether it completes a stop string; so_far is then cut there."""
        if not self._stop and not self._watched:
            return False  # nobody looks before the end: `close` decodes all tokens at once
        window = self._decode(ids[self._start :])
        # Bytes of an unfinished character decode to U+FFFD until the rest of it comes.
        whole = window.rstrip("\ufffd")
        if len(whole) > self._known:
            self.so_far += whole[self._known :]
            self._known = len(whole)
            if whole == window:
                self._start, self._next_start = self._next_start, len(ids)
                self._known = len(self._decode(ids[self._start :]))
        # The stop string that is complete first counts, and of those that end together the longest.
        found = [(at + len(stop), at) for stop in self._stop if (at := self.so_far.find(stop, self._sure)) >= 0]
        if found:
            self._stopped, self.so_far = True, self.so_far[: min(found)[1]]
        else:
            self._sure = len(self.so_far) - self._possible_stop()
        return self._stopped

    def close(self, ids: list[int]) -> None:
        """Take in what was held back, for no token follows."""
        if not self._stopped:
            self.so_far += self._decode(ids[self._start :])[self._known :]
        self._sure = len(self.so_far)

    def piece(self) -> str:
        """Return what has become sure since this was asked before."""
        new, self._given = self.so_far[self._given : self._sure], self._sure
        return new

    def _possible_stop(self) -> int:
        """Count the last characters that may be the beginning of a stop string."""
        begun = (n for stop in self._stop for n in range(1, len(stop)) if self.so_far.endswith(stop[:n]))
        return max(begun, default=0)
