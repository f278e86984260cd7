"""Write tokens after prompts, one step for all rows at a time, until every row has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .draft import Draft, drafted
from .reader import Reader, Scorer, Stepper
from .rows import Decode, Generation, Piece, Row, Text
from .sampling import Sampling, choose, usable


def generate(
    stepper: Stepper,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    decode: Decode | None = None,
    on_token: Callable[[int, str], None] | None = None,
    draft: Draft | None = None,
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
        draft: what proposes tokens ahead, where `stepper` is a `Scorer`; it changes the time, not the tokens.

    Raises:
        InputError: prompts, sampling, stepper and draft do not fit each other, or the logits leave nothing to choose.
    """
    results: dict[int, Generation] = {}
    for piece in _begun(stepper, prompts, sampling, decode, on_token is not None, draft):
        if on_token is not None and piece.text:
            on_token(piece.row, piece.text)
        if piece.result is not None:
            results[piece.row] = piece.result
    return [results[row] for row in range(len(results))]


def stream(
    stepper: Stepper,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    decode: Decode | None = None,
    draft: Draft | None = None,
) -> Iterator[Piece]:
    """Continue each prompt, and give what comes of it as it comes: after each step a piece of every row that went on.

    The rows, and what is raised, are `generate`'s. Who stops asking stops the writing.
    """
    return _begun(stepper, prompts, sampling, decode, decode is not None, draft)


def _begun(
    stepper: Stepper,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    decode: Decode | None,
    watched: bool,
    draft: Draft | None,
) -> Iterator[Piece]:
    """Check what is asked for, now and not at the first step, and return the steps; `watched`: text, too, as it comes.

    Raises:
        InputError: as `generate` says.
    """
    given = [list(prompt) for prompt in prompts]
    _check(stepper, given, sampling, decode, watched)
    if draft is not None:
        draft.check(stepper)
    return _steps(stepper, _rows(stepper, given, sampling, decode, watched), sampling, draft)


def _steps(stepper: Stepper, rows: list[Row], sampling: Sampling, draft: Draft | None) -> Iterator[Piece]:
    seen = np.zeros((len(rows), stepper.vocab_size), dtype=np.bool_)
    for index, row in enumerate(rows):
        seen[index, row.prompt] = True
    yield from (row.piece(index) for index, row in enumerate(rows) if row.ended is not None)
    if all(row.ended is not None for row in rows):
        return
    if draft is None:
        yield from _undrafted(stepper, rows, sampling, seen)
    else:
        yield from drafted(cast(Scorer, stepper), draft, rows, sampling, seen)


def _undrafted(stepper: Stepper, rows: list[Row], sampling: Sampling, seen: NDArray[np.bool_]) -> Iterator[Piece]:
    reader, step = Reader(stepper, [row.prompt for row in rows]), 0
    while live := [index for index, row in enumerate(rows) if row.ended is None]:
        logits = usable(reader.read(), seen.shape, live, f"step {step}")
        uniform = np.array([rows[index].uniform() for index in live])
        for index, token in zip(live, choose(logits, seen[live], uniform, sampling).tolist(), strict=True):
            seen[index, token] = True
            rows[index].take(token)
            if rows[index].ended is None:
                reader.waiting[index] = [token]
        yield from [rows[index].piece(index) for index in live]
        reader.cross(rows)
        step += 1


def _rows(
    stepper: Stepper,
    prompts: list[list[int]],
    sampling: Sampling,
    decode: Decode | None,
    watched: bool,
) -> list[Row]:
    copies: Counter[tuple[int, ...]] = Counter()
    rows = []
    for prompt in prompts:
        text = None if decode is None else Text(decode, sampling.stop, watched)
        rows.append(Row(prompt, copies[tuple(prompt)], sampling, stepper.max_seq_len, text))
        copies[tuple(prompt)] += 1
    return rows


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
