"""Write tokens after prompts, one step for all rows at a time, until every row has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .sampling import Floats, Ids, Sampling, choose

Ended = Literal["eos", "stop", "length", "full"]
Decode = Callable[[list[int]], str]
State = Any  # what a stepper remembers; the loop hands it on and never looks inside


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

    def step(self, input_ids: Ids, attention_mask: Ids | None, state: State) -> tuple[NDArray[np.float32], State]:
        """Take in tokens and give the logits (B, V) that follow each row's last valid one, with the next state.

        The state passed in is used up: the loop does not pass it twice.

        Args:
            input_ids: (B, T); the whole prompts in the first call, one column in later ones.
            attention_mask: (B, T), 1 at tokens and 0 at the padding on their right; None when there is no padding. A
                row that has ended is all padding: nothing may change for the others, and its logits are not read.
            state: what `start` or the step before gave.
        """


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

    `ids`: the token that was chosen, none at an eos. `text`: what is now sure of its text and was not before: whole
    characters, never a part of a stop string; the texts of a row's pieces make up its `text`, and without a `decode`
    they are empty. `result`: all that the row wrote, with its last piece.
    """

    row: int
    ids: tuple[int, ...]
    text: str
    result: Generation | None


def generate(
    stepper: Stepper,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    decode: Decode | None = None,
    on_token: Callable[[int, str], None] | None = None,
) -> list[Generation]:
    """Continue each prompt and give the results in the same order.

    A row's tokens do not depend on the rows beside it: its random numbers come from the seed and its own prompt, and if
    a prompt stands in the batch several times, the copies are told apart by their order, the first being what the
    prompt gives alone.

    Args:
        stepper: what gives the logits.
        prompts: token ids, at least one each and at most `stepper.max_seq_len`; lengths may differ.
        sampling: how tokens are chosen and when rows end.
        decode: the text of some tokens. More tokens should only add to the text, as byte-level decoders do; an
            unfinished character may show as U+FFFD until it is whole.
        on_token: is called with a row's index and each new piece of its text: whole characters, never a part of a stop
            string. The pieces of a row make up its `text`.

    Raises:
        InputError: prompts, sampling and stepper do not fit each other, or the logits leave nothing to choose.
    """
    results: dict[int, Generation] = {}
    for piece in _begun(stepper, prompts, sampling, decode, on_token is not None):
        if on_token is not None and piece.text:
            on_token(piece.row, piece.text)
        if piece.result is not None:
            results[piece.row] = piece.result
    return [results[row] for row in range(len(results))]


def stream(
    stepper: Stepper, prompts: Sequence[Sequence[int]], sampling: Sampling, decode: Decode | None = None
) -> Iterator[Piece]:
    """Continue each prompt, and give what comes of it as it comes: after each step a piece of every row that went on.

    The rows, and what is raised, are `generate`'s. Who stops asking stops the writing.
    """
    return _begun(stepper, prompts, sampling, decode, decode is not None)


def _begun(
    stepper: Stepper, prompts: Sequence[Sequence[int]], sampling: Sampling, decode: Decode | None, watched: bool
) -> Iterator[Piece]:
    """Check what is asked for, now and not at the first step, and return the steps; `watched`: text, too, as it comes.

    Raises:
        InputError: as `generate` says.
    """
    given = [list(prompt) for prompt in prompts]
    _check(stepper, given, sampling, decode, watched)
    return _steps(stepper, given, _rows(stepper, given, sampling, decode, watched), sampling)


def _steps(stepper: Stepper, prompts: list[list[int]], rows: list[_Row], sampling: Sampling) -> Iterator[Piece]:
    seen = np.zeros((len(rows), stepper.vocab_size), dtype=np.bool_)
    for row, prompt in enumerate(prompts):
        seen[row, prompt] = True
    yield from (row.piece(index) for index, row in enumerate(rows) if row.ended is not None)
    if all(row.ended is not None for row in rows):
        return
    ids, mask = _pad(prompts)
    state, step = stepper.start(len(rows)), 0
    edges: Collection[int] = getattr(stepper, "edges", ())  # a stepper may have lengths beyond which rows are read anew
    while live := [index for index, row in enumerate(rows) if row.ended is None]:
        logits, state = stepper.step(ids, mask, state)
        uniform = np.array([rows[index].random.random() for index in live])
        chosen = choose(_usable(logits, seen.shape, live, step), seen[live], uniform, sampling)
        column: list[list[int]] = [[] for _ in rows]
        for index, token in zip(live, chosen.tolist(), strict=True):
            seen[index, token] = True
            rows[index].take(token)
            if rows[index].ended is None:
                column[index] = [token]
        yield from [rows[index].piece(index) for index in live]
        if _crossing(prompts, rows, edges):
            state, column = (
                stepper.start(len(rows)),
                [prompt + row.ids if row.ended is None else [] for prompt, row in zip(prompts, rows, strict=True)],
            )
        ids, mask = _pad(column)
        step += 1


class _Row:
    """Gather one row's tokens and know when it has ended."""

    def __init__(self, prompt: list[int], copy: int, sampling: Sampling, max_seq_len: int, text: _Text | None) -> None:
        self.random = np.random.default_rng([sampling.seed, copy, *prompt])
        self.ids: list[int] = []
        self.ended: Ended | None = None
        self._sampling = sampling
        self._eos_ids = sampling.eos_ids
        self._room = max_seq_len - len(prompt)
        self._told = 0  # tokens of ids that were in a piece
        self._text = text
        if self._room == 0:
            self.ended = "full"

    def take(self, token: int) -> None:
        """Add a token and end the row where it is due."""
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


class _Text:
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


def _rows(
    stepper: Stepper,
    prompts: list[list[int]],
    sampling: Sampling,
    decode: Decode | None,
    watched: bool,
) -> list[_Row]:
    copies: Counter[tuple[int, ...]] = Counter()
    rows = []
    for prompt in prompts:
        text = None if decode is None else _Text(decode, sampling.stop, watched)
        rows.append(_Row(prompt, copies[tuple(prompt)], sampling, stepper.max_seq_len, text))
        copies[tuple(prompt)] += 1
    return rows


def _crossing(prompts: list[list[int]], rows: list[_Row], edges: Collection[int]) -> bool:
    """Say whether the newest token of a row that goes on stands beyond a length that its state can't cross."""
    live = [len(prompt) + len(row.ids) for prompt, row in zip(prompts, rows, strict=True) if row.ended is None]
    return bool(edges) and any(length - 1 in edges for length in live)


def _pad(rows: list[list[int]]) -> tuple[Ids, Ids | None]:
    """Give input_ids and attention_mask (B, T) of rows of tokens, padded on the right; no mask where none is needed."""
    longest = max(1, *map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows], dtype=np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=np.int64)
    return ids, None if mask.all() else mask


def _usable(logits: NDArray[np.float32], shape: tuple[int, ...], live: list[int], step: int) -> Floats:
    """Give the logits of the rows in `live` as float64 (len(live), V), or say which of them can't be chosen from."""
    if logits.shape != shape:
        raise InputError(f"step {step}: the model gave logits of shape {logits.shape}, not {shape} (rows, vocab_size)")
    usable = logits[live].astype(np.float64)
    greatest = usable.max(axis=-1)  # NaN where there is one
    for index, value in zip(live, greatest.tolist(), strict=True):
        if not np.isfinite(value):
            held = {np.inf: "+inf", -np.inf: "nothing but -inf"}.get(value, "NaN")
            raise InputError(f"row {index}, step {step}: the logits hold {held}, so no token can be chosen")
    return usable


def _check(
    stepper: Stepper,
    prompts: list[list[int]],
    sampling: Sampling,
    decode: Decode | None,
    watched: bool,
) -> None:
    """Raise InputError where prompts, sampling and stepper do not fit each other."""
    if decode is None and (sampling.stop or watched):
        what = "sampling.stop" if sampling.stop else "on_token"
        raise InputError(f"{what} needs the text of the tokens: pass decode=, the tokenizer's way from ids to text")
    last = stepper.vocab_size - 1
    if odd := [number for number in sampling.eos_ids if number > last]:
        raise InputError(f"sampling.eos_id: {odd[0]} is not a token of this model, which knows 0 to {last}")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(
                f"prompt {row} has no tokens, and there is nothing to continue: give it some text, or the token that "
                "begins every text of this model (often its bos or eos)"
            )
        if len(prompt) > stepper.max_seq_len:
            raise InputError(
                f"prompt {row} has {len(prompt)} tokens, but the model holds {stepper.max_seq_len} (max_seq_len): "
                "shorten it, leaving room for what is to be written"
            )
        for token in prompt:
            if not isinstance(token, Integral) or not 0 <= token <= last:
                raise InputError(f"prompt {row}: {token!r} is not a token of this model, which knows 0 to {last}")
