"""Let a cheap model run ahead, and read what it proposes in one call of the model that is asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .reader import Logits, Reader, Scorer, Stepper
from .rows import Piece, Row
from .sampling import Sampling, choose, usable

Seen = NDArray[np.bool_]


@dataclass
class Draft:
    """Propose tokens that another model reads several of at once (Leviathan et al., arXiv 2211.17192).

    A proposal is drawn by the very random number that its place is drawn by in the end, so that what is written is
    what is written without a draft, token for token, for any sampling: a draft changes the time alone.

    Args:
        stepper: the model that proposes; its tokens are those of the model that is asked for.
        ahead: how many tokens it proposes at a time, at least 1.
        proposed: counts, over all rows, the tokens proposed so far.
        accepted: and those of them that were written.

    Raises:
        InputError: `ahead` is below 1.
    """

    stepper: Scorer
    ahead: int = 4
    proposed: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        if self.ahead < 1:
            raise InputError(f"draft.ahead: {self.ahead} is not a number of tokens to propose; at least 1")

    def check(self, stepper: Stepper) -> None:
        """Raise InputError where this can't be a draft for `stepper`."""
        for whose, each in (("the model", stepper), ("the draft", self.stepper)):
            if not hasattr(each, "score") or not hasattr(each, "rewind"):
                raise InputError(f"draft: {whose} gives the logits after its last token alone, and can't go back")
        if stepper.vocab_size != self.stepper.vocab_size:
            raise InputError(
                f"draft: it knows {self.stepper.vocab_size} tokens, and the model {stepper.vocab_size}: they need the "
                "same tokenizer"
            )


def drafted(stepper: Scorer, draft: Draft, rows: Sequence[Row], sampling: Sampling, seen: Seen) -> Iterator[Piece]:
    """Write the rows to their ends, round by round: propose, read, write what agrees and one token more.

    seen (B, V): true at tokens of each row, and changed as it grows.
    """
    model, ahead = (Reader(each, [row.prompt for row in rows]) for each in (stepper, draft.stepper))
    edges, step = {*model.edges, *ahead.edges}, 0
    while live := [index for index, row in enumerate(rows) if row.ended is None]:
        counts = [_count(row, draft, edges) for row in rows]
        model.mark()
        ahead.mark()
        proposals = _proposals(ahead, rows, counts, seen.copy(), sampling)
        begun = [len(waiting) for waiting in model.waiting]
        for waiting, proposal in zip(model.waiting, proposals, strict=True):
            waiting += proposal
        written = _written(model.score(), begun, rows, proposals, seen, sampling, step)
        yield from [rows[index].piece(index) for index in live]
        agreed = [_agreed(*pair) for pair in zip(written, proposals, strict=True)]
        draft.proposed += sum(counts)
        draft.accepted += sum(agreed)
        model.forget([count - kept for count, kept in zip(counts, agreed, strict=True)])
        ahead.forget([max(count - 1 - kept, 0) for count, kept in zip(counts, agreed, strict=True)])
        for index, row in enumerate(rows):
            model.waiting[index] = written[index][-1:] if row.ended is None else []
            known = min(agreed[index], max(counts[index] - 1, 0))
            ahead.waiting[index] = ahead.waiting[index] + written[index][known:] if row.ended is None else []
        model.cross(rows, edges)
        ahead.cross(rows, edges)
        step += 1


def _count(row: Row, draft: Draft, edges: Collection[int]) -> int:
    """Return how many tokens to propose for a row: the last of those that it may get is the model's own."""
    if row.ended is not None:
        return 0
    bounds = [draft.ahead, row.left - 1, draft.stepper.max_seq_len - row.length]
    return max(0, min(bounds + [edge - row.length for edge in edges if edge >= row.length]))


def _proposals(
    reader: Reader, rows: Sequence[Row], counts: Sequence[int], seen: Seen, sampling: Sampling
) -> list[list[int]]:
    """Return as many tokens for each row as `counts` say; the last of them is not read."""
    proposals: list[list[int]] = [[] for _ in rows]
    for place in range(max(counts)):
        going = [index for index, count in enumerate(counts) if count > place]
        logits = usable(reader.read(going), seen.shape, going, "draft")
        uniform = np.array([rows[index].uniform(place) for index in going])
        for index, token in zip(going, choose(logits, seen[going], uniform, sampling).tolist(), strict=True):
            proposals[index].append(token)
            seen[index, token] = True
            if place + 1 < counts[index]:
                reader.waiting[index] = [token]
    return proposals


def _written(
    logits: Logits,
    begun: Sequence[int],
    rows: Sequence[Row],
    proposals: Sequence[list[int]],
    seen: Seen,
    sampling: Sampling,
    step: int,
) -> list[list[int]]:
    """Let each row take what the model chooses, for as long as it is what was proposed, and return what it took.

    begun (B,): how many tokens of each row were read before its proposals.
    """
    written: list[list[int]] = [[] for _ in rows]
    going = [index for index, row in enumerate(rows) if row.ended is None]
    while going:
        column = np.array([begun[index] - 1 + len(written[index]) for index in going])
        here = np.zeros((len(rows), logits.shape[-1]), dtype=np.float32)
        here[going] = logits[going, column]
        uniform = np.array([rows[index].uniform() for index in going])
        chosen = choose(usable(here, seen.shape, going, f"step {step}"), seen[going], uniform, sampling)
        for index, token in zip(going, chosen.tolist(), strict=True):
            rows[index].take(token)
            written[index].append(token)
            seen[index, token] = True
        going = [
            index
            for index in going
            if rows[index].ended is None and _agreed(written[index], proposals[index]) == len(written[index])
        ]
    return written


def _agreed(written: Sequence[int], proposal: Sequence[int]) -> int:
    """Count the first tokens that are alike."""
    alike = 0
    for one, other in zip(written, proposal, strict=False):
        if one != other:
            break
        alike += 1
    return alike
