"""Walk a case with exported graphs, and tally how far what they give is from what is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .cases import Arrays, Call, Case
from .manifest import PAST, TOTAL, GraphFacts, StateFacts, is_mask
from .report import Row
from .session import Session, empty_state


class Wanted(Protocol):
    """Be what a tensor should be, at all of its places or at some.

    `largest`: its largest magnitude; None where `points` have it.
    """

    @property
    def largest(self) -> float | None: ...

    def points(self, found: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return what was found, and what should be, at the places that are known."""
        ...

    @property
    def best(self) -> NDArray[np.int64]:
        """Return the largest logit's place of each token."""
        ...

    def margin(self, instead: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how much larger each token's largest logit is than another; infinite where that is not known."""
        ...


class Whole:
    """Be a whole tensor."""

    largest: float | None

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.largest = None

    def points(self, found: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return both as they are."""
        return found, self.array

    @property
    def best(self) -> NDArray[np.int64]:
        """Return the largest logit's place of each token."""
        best: NDArray[np.int64] = self.array.argmax(-1)
        return best

    def margin(self, instead: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how much larger each token's largest logit is than another."""
        other = np.take_along_axis(self.array, instead[..., None], axis=-1)[..., 0]
        margin: NDArray[np.float64] = self.array.max(-1).astype(np.float64) - other
        return margin


class Tally:
    """Gather the largest error of each tensor, and how often the largest logits agree."""

    def __init__(self) -> None:
        self.errors: dict[str, float] = {}
        self._same = self._near = self._tokens = 0
        self._apart = self._power = 0.0

    def row(self, case: str, provider: str, precision: str, target: str, allowed: float) -> Row:
        """Return what was gathered."""
        row = Row(case, provider, precision, allowed, self.errors, None, target=target)
        if not self._tokens:
            return row
        rms = (self._apart / (self._power or 1.0)) ** 0.5
        return replace(row, agreement=self._same / self._tokens, ambiguous=self._near / self._tokens, rms=rms)

    def add(self, wanted: Mapping[str, Wanted], found: Arrays, inputs: Arrays) -> None:
        """Compare the tensors of one call; the masks among its inputs say which tokens of the logits are real."""
        for name, want in wanted.items():
            here, there = want.points(found[name])
            error = relative_error(here, there, want.largest)
            self.errors[name] = max(self.errors.get(name, 0.0), error)
            if name.startswith("logits") and found[name].shape[:-1] == want.best.shape:
                self._choices(want, found[name], here, there, inputs)

    def _choices(
        self, want: Wanted, found: NDArray[Any], here: NDArray[Any], there: NDArray[Any], inputs: Arrays
    ) -> None:
        real = _real(found.shape[:-1], inputs)
        apart = np.square(here.astype(np.float64) - there)
        self._apart += float(apart.sum())
        self._power += float(np.square(there.astype(np.float64)).sum())
        best, instead = want.best, found.argmax(-1)
        differs = best != instead
        near = differs & (want.margin(instead) < np.sqrt(apart.mean()))
        self._same += int((~differs)[real].sum())
        self._near += int(near[real].sum())
        self._tokens += int(real.sum())


def _real(shape: tuple[int, ...], inputs: Arrays) -> NDArray[np.bool_]:
    """Return which logits are of real tokens; where they are those of each row's last token, which rows have any."""
    masks = (mask.astype(bool) for name, mask in inputs.items() if is_mask(name) and mask.ndim == len(shape))
    real: NDArray[np.bool_] = next(masks, np.ones(shape, dtype=bool))
    return real if real.shape == shape else np.any(real, axis=1, keepdims=True)


def relative_error(found: NDArray[Any], wanted: NDArray[Any], largest: float | None = None) -> float:
    """Return the largest difference over the largest magnitude wanted; infinite where integers or shapes differ.

    `largest`: that magnitude, where `wanted` is a part alone.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if wanted.size == 0 or np.array_equal(found, wanted):
        return 0.0
    apart = float(np.abs(found - wanted).max())
    if wanted.dtype.kind != "f" or not np.isfinite(apart):
        return float("inf")
    return apart / ((float(np.abs(wanted).max()) if largest is None else largest) or 1.0)


class Walk:
    """Walk one case with the graphs of one provider's sessions, from an empty state."""

    def __init__(self, sessions: Mapping[str, Session], state: Mapping[str, StateFacts], case: Case) -> None:
        self._sessions = sessions
        self._state = state
        self.values = empty_state(state, case.rows, case.room({name: each.facts for name, each in sessions.items()}))
        self.tally = Tally()

    def run(self, call: Call, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Return the outputs and the state of one call, in single precision; what no token stands in is 0."""
        facts = self._sessions[call.graph].facts
        found, values = self._sessions[call.graph].run(inputs, {n: self.values[n] for n in facts.takes})
        self.values |= values
        kept = {name: _as_wide(value.numpy()) for name, value in values.items()}
        return found, filled(kept, self._state, seen(facts, inputs, kept))


class Masks:
    """Keep the masks of all columns since the first step."""

    def __init__(self) -> None:
        self._held: Arrays = {}

    def inputs(self, facts: GraphFacts, call: Call) -> Arrays:
        """Return a call's inputs; masks that are of all columns begin with those of earlier calls."""
        given = dict(call.inputs)
        for name in given:
            if covers_all(facts, name):
                before = [self._held[name]] if name in self._held else []
                given[name] = self._held[name] = np.concatenate([*before, given[name]], axis=1)
        return given


def covers_all(facts: GraphFacts, name: str) -> bool:
    """Say whether an input is a mask of all columns since the first step."""
    return TOTAL in facts.inputs[name].dims


def seen(facts: GraphFacts, inputs: Arrays, kept: Arrays) -> NDArray[np.int64] | None:
    """Return how many real tokens each row has had after a call, (rows,); None where nothing counts them."""
    masks = (mask.sum(axis=1) for name, mask in inputs.items() if covers_all(facts, name))
    return next(masks, kept.get("seen"))


def filled(kept: Arrays, state: Mapping[str, StateFacts], seen: NDArray[np.int64] | None) -> Arrays:
    """Return tensors of the state with what no token stands in set to 0: nobody reads it before it is written."""

    def one(value: NDArray[Any], facts: StateFacts) -> NDArray[Any]:
        if facts.grows != "slots":
            return value
        assert seen is not None, "what has slots is counted"
        slot = facts.dims.index(PAST)
        free = np.arange(value.shape[slot]) >= seen[:, None]
        return np.where(free.reshape([n if i in (0, slot) else 1 for i, n in enumerate(value.shape)]), 0, value)

    return {name: one(value, state[name]) for name, value in kept.items()}


def _as_wide(found: NDArray[Any]) -> NDArray[Any]:
    """Return numbers of half precision in the one that they are compared in."""
    return found.astype(np.float32) if found.dtype == np.float16 else found
