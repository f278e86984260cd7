"""Choose the next token of each row from its logits.

The samplers are pure functions over (B, V) float64 logits that hold no NaN, no +inf and in every row at least one
finite number; -inf marks a token that can't be chosen. Where logits tie, the lowest token id goes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """Say how tokens are chosen and when a row ends.

    Args:
        max_new_tokens: the most tokens that a row gets, at least 1.
        temperature: what logits are divided by; 0 takes the likeliest token, whatever `top_k`, `top_p` and `seed` say.
        top_k: keep this many of the likeliest tokens; None, or more than the vocabulary holds, keeps all.
        top_p: keep the likeliest tokens that together reach this probability, above 0 and up to 1 (arXiv 1904.09751).
        repetition_penalty: divides positive and multiplies negative logits of the tokens that stand in the prompt or
            the output already, from 0.01 to 100; 1 changes nothing (arXiv 1909.05858).
        seed: the same seed, prompt and model give the same tokens; at least 0.
        stop: strings that end a row; its text ends before the first of them that it completes.
        eos_id: the token that ends a row, or several of which each does, if there is one.

    Raises:
        InputError: a value is outside what is allowed; each wrong value has its line.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    eos_id: int | tuple[int, ...] | None = None

    @classmethod
    def of(cls, **options: Any) -> Sampling:
        """Make one of options as they come: `stop` may be one string, and `stop` and `eos_id` lists.

        Raises:
            InputError: there is no such option, or a value is outside what is allowed.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise InputError(f"sampling.{name}: there is no such option ({hint})")
        if isinstance(options.get("stop"), str):
            options["stop"] = (options["stop"],)
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
        }
        return cls(**given)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Return the tokens of `eos_id`, however many there are."""
        if isinstance(self.eos_id, tuple):
            return self.eos_id
        return () if self.eos_id is None else (self.eos_id,)

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (_is_whole(self.max_new_tokens, 1), "a whole number of at least 1"),
            "temperature": (_is_number(self.temperature, 0, math.inf), "a finite number of at least 0 (0: greedy)"),
            "top_k": (self.top_k is None or _is_whole(self.top_k, 1), "a whole number of at least 1, or None"),
            "top_p": (
                self.top_p is None or (_is_number(self.top_p, 0, 1) and self.top_p > 0),
                "a number above 0 and up to 1, or None",
            ),
            "repetition_penalty": (_is_number(self.repetition_penalty, 0.01, 100), "a number from 0.01 to 100"),
            "seed": (_is_whole(self.seed, 0), "a whole number of at least 0"),
            # U+FFFD is how decoders write a character that has not come to its end, so no text can be searched for it.
            "stop": (
                isinstance(self.stop, tuple)
                and all(isinstance(text, str) and text and "\ufffd" not in text for text in self.stop),
                "a tuple of strings, none of them empty and none with the replacement character U+FFFD",
            ),
            "eos_id": (
                all(_is_whole(number, 0) for number in self.eos_ids),
                "a token id of at least 0, a tuple of such, or None",
            ),
        }
        wrong = [
            f"sampling.{name}: {getattr(self, name)!r} is not {allowed}"
            for name, (fits, allowed) in rules.items()
            if not fits
        ]
        if wrong:
            raise InputError("\n".join(wrong))


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _is_number(value: object, least: float, most: float) -> bool:
    return (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and least <= float(value) <= most
    )


def penalize(logits: Floats, seen: NDArray[np.bool_], penalty: float) -> Floats:
    """Make tokens in `seen` (B, V) less likely: divide positive logits by `penalty`, multiply negative ones by it."""
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def temper(logits: Floats, temperature: float) -> Floats:
    """Divide logits (B, V) by `temperature` (above 0), each row shifted first so that its greatest is 0."""
    # The shift changes no probability, and only differences can overflow: towards -inf, which is what they mean.
    with np.errstate(over="ignore"):
        tempered: Floats = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    return tempered


def keep_top_k(logits: Floats, k: int) -> Floats:
    """Put -inf everywhere but at the `k` greatest logits of each row (B, V)."""
    vocab_size = logits.shape[-1]
    if k >= vocab_size:
        return logits
    least = np.partition(logits, vocab_size - k, axis=-1)[:, vocab_size - k, None]
    above, ties = logits > least, logits == least
    room = k - above.sum(axis=-1, keepdims=True)
    return np.where(above | (ties & (ties.cumsum(axis=-1) <= room)), logits, -np.inf)


def keep_top_p(logits: Floats, p: float) -> Floats:
    """Put -inf everywhere but at the fewest likeliest tokens of each row (B, V) whose probabilities reach `p`.

    At least one token stays; `p` of 1 keeps all.
    """
    if p == 1:
        return logits
    order = np.argsort(-logits, axis=-1, kind="stable")
    reached = np.take_along_axis(_weights(logits), order, axis=-1).cumsum(axis=-1)
    kept = np.ones_like(logits, dtype=np.bool_)
    # A token stays if those before it fall short of p; nothing stands before the first.
    np.put_along_axis(kept, order[:, 1:], reached[:, :-1] < p * reached[:, -1:], axis=-1)
    return np.where(kept, logits, -np.inf)


def draw(logits: Floats, uniform: Floats) -> Ids:
    """Draw one token id per row (B,) from the softmax of logits (B, V), by `uniform` (B,) numbers in [0, 1)."""
    reached = _weights(logits).cumsum(axis=-1)
    # 1 - uniform is in (0, 1]: the target is above 0 and never beyond the sum, so no token of probability 0 is hit.
    target = (1 - uniform[:, None]) * reached[:, -1:]
    ids: Ids = (reached >= target).argmax(axis=-1)
    return ids


def choose(logits: Floats, seen: NDArray[np.bool_], uniform: Floats, sampling: Sampling) -> Ids:
    """Choose one token id per row (B,): repetition penalty, then temperature, top-k, top-p and a draw.

    Args:
        logits: (B, V), as the model gives them.
        seen: (B, V), true at the tokens of each row's prompt and output.
        uniform: (B,) random numbers in [0, 1).
        sampling: which of the steps apply, and how.
    """
    if sampling.repetition_penalty != 1:
        logits = penalize(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        best: Ids = logits.argmax(axis=-1)
        return best
    logits = temper(logits, sampling.temperature)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    return draw(logits, uniform)


def _weights(logits: Floats) -> Floats:
    """Give numbers in proportion to the probabilities, the greatest of each row being 1."""
    weights: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights


def usable(logits: NDArray[np.float32], shape: tuple[int, ...], rows: Sequence[int], where: str) -> Floats:
    """Give the logits of some rows as float64 (len(rows), V); `shape` (B, V) is what they should have.

    Raises:
        InputError: they have another, or nothing can be chosen from those of a row; `where` says in which step.
    """
    if logits.shape != shape:
        raise InputError(f"{where}: the model gave logits of shape {logits.shape}, not {shape} (rows, vocab_size)")
    found = logits[rows].astype(np.float64)
    greatest = found.max(axis=-1)  # NaN where there is one
    for index, value in zip(rows, greatest.tolist(), strict=True):
        if not np.isfinite(value):
            held = {np.inf: "+inf", -np.inf: "nothing but -inf"}.get(value, "NaN")
            raise InputError(f"row {index}, {where}: the logits hold {held}, so no token can be chosen")
    return found
