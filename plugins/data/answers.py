"""Questions, each with a text that holds its answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

from ...core.data import DEFAULT_TOKENIZER, Data, DataConfig, Example, TextField, TokenizerOptions
from ...core.reading import read_records
from ...errors import DataError

PARTS = ("question", "before", "answer", "after")


class AnswersData(Data):
    """Give questions with the text that answers them, in three parts: what is before the answer, it, what is after.

    The parts are cut into tokens one by one, so that an answer is whole tokens.
    """

    rows = "examples"
    fields = MappingProxyType({name: TextField(f"{name}_ids", f"{name}_mask", opened=False) for name in PARTS})

    @dataclass(frozen=True, kw_only=True)
    class Config(DataConfig):
        """Choose the questions.

        `path`: a `.jsonl` of objects with `question`, `context`, `answer`, a stretch of the context, and `start`, the
        number of characters before it. Parts of more than `seq_len` tokens are cut.
        """

        path: str
        seq_len: int = 128
        tokenizer: TokenizerOptions = DEFAULT_TOKENIZER

    config: Config

    def examples(self) -> Iterator[Example]:
        """Yield the questions; the key is the text, so that all that is asked of one text stays on one side."""
        columns = {"question": str, "context": str, "answer": str, "start": int}
        for place, record in read_records(Path(self.config.path), columns):
            context, answer, start = str(record["context"]), str(record["answer"]), cast(int, record["start"])
            if start < 0 or context[start : start + len(answer)] != answer:
                raise DataError(f"{place}: `answer` does not stand in `context` behind {start} characters")
            parts = (str(record["question"]), context[:start], answer, context[start + len(answer) :])
            yield Example(context, dict(zip(PARTS, parts, strict=True)))
