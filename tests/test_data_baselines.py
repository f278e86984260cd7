"""Baselines: the vectorised counts equal counting by hand, and the sample's numbers are what they should be."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from transom.core.data import Data, DataConfig, Example, LabelField, TextField, TokenizerOptions
from transom.data import baselines, prepare
from transom.data.survey import is_held_out
from transom.errors import DataError
from transom.plugins.data.text import TextData

RNG = np.random.default_rng(5)
TEXTS = [" ".join(RNG.choice(["one", "two", "six", "é"], RNG.integers(1, 40))) for _ in range(71)]
SIZE = 270


class Words(Data):
    """Give words, and where they are held out also letters that the training side never has."""

    rows = "stream"
    fields = {"text": TextField()}  # noqa: RUF012

    def examples(self) -> Iterator[Example]:
        for number, text in enumerate(TEXTS):
            yield Example(f"{number}", {"text": text + "~Q~" * is_held_out(f"{number}", 0.2)})


class Numbers(Data):
    """Give what is no text."""

    fields = {"label": LabelField()}  # noqa: RUF012

    def examples(self) -> Iterator[Example]:
        for number in range(99):
            yield Example(f"{number}", {"label": number})


def test_baselines_equal_their_slow_twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "BLOCK", 77)
    data = Words(DataConfig(hold_out=0.2, seq_len=7, tokenizer=TokenizerOptions(vocab_size=SIZE)))
    dataset = prepare(data, tmp_path, lookahead=1, seed=0)
    assert dataset.tokenizer is not None
    assert dataset.tokenizer.vocabulary.size == SIZE
    sides = list[list[int]](), list[list[int]]()
    for example in data.examples():
        ids = [0, *dataset.tokenizer.encode(str(example.fields["text"])), 0]
        sides[is_held_out(example.key, 0.2)].append(ids)
    ones, twos = dict.fromkeys(range(SIZE), 1), dict[tuple[int, int], int]()
    for ids in sides[0]:
        for a, b in pairwise(ids):
            ones[b] += 1
            twos[a, b] = twos.get((a, b), 0) + 1
    after = {a: sum(count for (first, _), count in twos.items() if first == a) for a in range(SIZE)}
    bits = np.zeros(2)
    for ids in sides[1]:
        for a, b in pairwise(ids):
            single = ones[b] / sum(ones.values())
            double = 0.85 * twos.get((a, b), 0) / after[a] + 0.15 * single if after[a] else single
            bits -= np.log2(single), np.log2(double)
    text = "".join(dataset.held_out_texts("text")).encode()
    result = baselines.bits_per_byte(dataset)
    assert [result["unigram"], result["bigram"]] == pytest.approx(bits / len(text), rel=1e-12)
    assert result["gzip"] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert result["xz"] == 8 * len(lzma.compress(text, preset=9)) / len(text)


def test_the_sample_of_the_standard_library(tmp_path: Path) -> None:
    dataset = prepare(TextData(TextData.Config()), tmp_path, lookahead=1, seed=0)
    report = dataset.report
    assert 0.02 < report.held_out.bytes / (report.held_out.bytes + report.train.bytes) < 0.08
    assert 3 < report.train.bytes / report.train.tokens < 5
    result = baselines.bits_per_byte(dataset)
    assert list(result) == ["unigram", "bigram", "gzip", "xz"]
    assert result["unigram"] == pytest.approx(2.49, abs=0.2)
    assert result["bigram"] == pytest.approx(1.81, abs=0.2)
    assert result["gzip"] == pytest.approx(2.08, abs=0.2)
    assert result["xz"] == pytest.approx(1.84, abs=0.2)


def test_baselines_are_for_streams_of_text(tmp_path: Path) -> None:
    dataset = prepare(Numbers(DataConfig()), tmp_path, lookahead=0, seed=2)
    with pytest.raises(DataError, match="`numbers` is no stream of text"):
        baselines.bits_per_byte(dataset)
