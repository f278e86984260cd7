"""Sums of small numbers, written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from transom.core import Data

TOKENIZER = Data.Tokenizer(vocab_size=512)


class NewData(Data):
    """Give every sum of two whole numbers up to `largest` as a text, each a row of its own: `3 + 4 = 7`.

    `hold_out`, `seq_len` and `tokenizer` are options of all data; text needs the last two.
    """

    # What each field of an example is, and whether an example is a row or a part of a stream that is cut into rows.
    fields = MappingProxyType({"text": Data.TextField()})
    rows: Literal["stream", "examples"] = "examples"

    @dataclass(frozen=True, kw_only=True)
    class Config(Data.Config):
        """largest: the largest number that is added."""

        largest: int = 40
        seq_len: int = 32
        tokenizer: Data.Tokenizer = TOKENIZER

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.largest < 1:
                raise ValueError(f"largest: {self.largest} gives no sums to speak of; at least 1")

    config: Config

    def examples(self) -> Iterator[Data.Example]:
        """Yield the sums, always in the same order; the key, by which an example is held out or not, is the sum."""
        for a in range(self.config.largest + 1):
            for b in range(self.config.largest + 1):
                text = f"{a} + {b} = {a + b}"
                yield Data.Example(text, {"text": text})
