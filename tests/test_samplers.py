"""Check the samplers against slow twins that do one row at a time, and what `Sampling` refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from transom.errors import InputError
from transom.generation import Sampling
from transom.generation.sampling import choose, draw, keep_top_k, keep_top_p, penalize, temper


def twin_penalize(row: list[float], seen: list[bool], penalty: float) -> list[float]:
    return [(x / penalty if x > 0 else x * penalty) if s else x for x, s in zip(row, seen, strict=True)]


def twin_best_first(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


def twin_softmax(row: list[float]) -> list[float]:
    weights = [math.exp(x - max(row)) for x in row]
    return [w / math.fsum(weights) for w in weights]


def twin_top_k(row: list[float], k: int) -> list[float]:
    kept = twin_best_first(row)[:k]
    return [x if token in kept else -math.inf for token, x in enumerate(row)]


def twin_top_p(row: list[float], p: float) -> list[float]:
    kept: list[int] = []
    for token in twin_best_first(row):
        if math.fsum(twin_softmax(row)[t] for t in kept) >= p and kept:
            break
        kept.append(token)
    return [x if token in kept else -math.inf for token, x in enumerate(row)]


def twin_draw(row: list[float], uniform: float) -> int:
    left = 1 - uniform
    for token, probability in enumerate(twin_softmax(row)):
        left -= probability
        if left <= 0:
            return token
    return max(token for token, x in enumerate(row) if x > -math.inf)


def some_logits(seed: int, ties: bool) -> NDArray[np.float64]:
    """Give (5, 13) logits, whole numbers (so that they tie) or not, some of them -inf."""
    random = np.random.default_rng(seed)
    logits = random.integers(-2, 3, (5, 13)).astype(float) if ties else random.normal(size=(5, 13)) * 2
    logits[:, 1:][random.random((5, 12)) < 0.2] = -np.inf
    return logits


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(7))
def test_samplers_equal_their_twins(seed: int, ties: bool) -> None:
    logits = some_logits(seed, ties)
    random = np.random.default_rng(seed + 100)
    seen, uniform = random.random((5, 13)) < 0.4, random.random(5)
    rows = logits.tolist()
    np.testing.assert_allclose(
        penalize(logits, seen, 1.7), [twin_penalize(r, s, 1.7) for r, s in zip(rows, seen.tolist(), strict=True)]
    )
    for k in (1, 2, 6, 12, 13, 14, 1000):
        np.testing.assert_array_equal(keep_top_k(logits, k), [twin_top_k(row, k) for row in rows])
    for p in (1e-9, 0.1234, 0.5678, 0.9123, 1):
        np.testing.assert_array_equal(keep_top_p(logits, p), [twin_top_p(row, p) for row in rows])
    for heat in (0.3, 1.0, 2.5):
        expected = [twin_softmax([x / heat for x in row]) for row in rows]
        np.testing.assert_allclose([twin_softmax(row) for row in temper(logits, heat).tolist()], expected)
    assert draw(logits, uniform).tolist() == [twin_draw(r, u) for r, u in zip(rows, uniform.tolist(), strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_choose_takes_the_steps_in_order(seed: int) -> None:
    logits, random = some_logits(seed, ties=False), np.random.default_rng(seed)
    seen, uniform = random.random((5, 13)) < 0.4, random.random(5)
    for sampling in (
        Sampling(temperature=2.0, repetition_penalty=3.0),
        Sampling(temperature=1.5, top_k=4),
        Sampling(temperature=1.5, top_p=0.5),
        Sampling(temperature=3.0, top_k=6, top_p=0.6, repetition_penalty=0.4),
    ):
        expected = []
        for row, marked, number in zip(logits.tolist(), seen.tolist(), uniform.tolist(), strict=True):
            heated = [x / sampling.temperature for x in twin_penalize(row, marked, sampling.repetition_penalty)]
            expected.append(
                twin_draw(twin_top_p(twin_top_k(heated, sampling.top_k or 13), sampling.top_p or 1), number)
            )
        assert choose(logits, seen, uniform, sampling).tolist() == expected
    likeliest = [
        twin_best_first(twin_penalize(r, s, 3.0))[0] for r, s in zip(logits.tolist(), seen.tolist(), strict=True)
    ]
    assert choose(logits, seen, uniform, Sampling(repetition_penalty=3.0, top_k=1)).tolist() == likeliest


def test_ties_go_to_the_lowest_id() -> None:
    even = np.zeros((1, 4))
    assert np.isfinite(keep_top_k(even, 3)).tolist() == [[True, True, True, False]]
    assert np.isfinite(keep_top_p(even, 0.5)).tolist() == [[True, True, False, False]]
    assert np.isfinite(keep_top_p(even, 0.5000001)).tolist() == [[True, True, True, False]]
    assert choose(np.array([[0.0, 1, 1, 0]]), even > 0, np.zeros(1), Sampling()).tolist() == [1]


def test_draws_follow_the_probabilities() -> None:
    row = np.array([-np.inf, 0.3, -np.inf, 1.1, -0.4, -np.inf])
    count = 4001
    uniform = (np.arange(count) + 0.5) / count
    drawn = np.bincount(draw(np.tile(row, (count, 1)), uniform), minlength=6)
    assert np.abs(drawn - count * np.array(twin_softmax(row.tolist()))).max() <= 1
    edges = np.array([0.0, np.nextafter(1, 0)])
    assert set(draw(np.tile(row, (2, 1)), edges).tolist()) == {1, 4}  # the first and the last that can be drawn at all


def test_extreme_logits_and_temperatures_stay_exact() -> None:
    logits = np.array([[3e38, -3e38, -np.inf, 2.9e38]])
    assert temper(logits, 5e-324).tolist() == [[0, -np.inf, -np.inf, -np.inf]]
    assert draw(temper(logits, 1e300), np.array([0.0])).tolist() == [3]
    assert penalize(logits, np.ones((1, 4), dtype=bool), 2).tolist() == [[1.5e38, -6e38, -np.inf, 1.45e38]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_new_tokens", value) for value in (0, -3, 2.0, True)],
        *[("temperature", value) for value in (-0.1, math.inf, math.nan, "1", None)],
        *[("top_k", value) for value in (0, 1.5)],
        *[("top_p", value) for value in (0, 1.01, math.nan, "0.9")],
        *[("repetition_penalty", value) for value in (0, -1, 101, math.nan)],
        *[("seed", value) for value in (-1, 0.5, None)],
        *[("stop", value) for value in ("END", ["END"], ("",), (1,), ("\ufffd",))],
        *[("eos_id", value) for value in (-1, "</s>")],
    ],
)
def test_each_wrong_value_has_its_error(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"\Asampling\.{name}: .* is not .*\Z") as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


def test_all_wrong_values_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Sampling(temperature=-1, top_p=2, seed=-1)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "sampling.temperature",
        "sampling.top_p",
        "sampling.seed",
    ]
