"""Texts, each with several others of which one belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...core.data import DEFAULT_TOKENIZER, Data, DataConfig, Example, TextField, TokenizerOptions
from ...core.reading import read_records
from ...errors import DataError


class ChoicesData(Data):
    """Give texts with what may go on with them: the right one first, then the others in their order."""

    rows = "examples"

    @dataclass(frozen=True, kw_only=True)
    class Config(DataConfig):
        """Choose the texts.

        `path`: a `.jsonl` of objects with `text`, `choices`, a list of `n_choices` texts, and `label`, the place of the
        right one, from 0. Texts of more than `seq_len` tokens are cut.
        """

        path: str
        n_choices: int = 4
        seq_len: int = 128
        tokenizer: TokenizerOptions = DEFAULT_TOKENIZER

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.n_choices < 2:
                raise ValueError(f"n_choices: {self.n_choices} leaves nothing to choose; at least 2")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._names = ["text", "right", *(f"wrong_{number}" for number in range(1, config.n_choices))]
        self.fields = {name: TextField(f"{name}_ids", f"{name}_mask", opened=False) for name in self._names}

    def examples(self) -> Iterator[Example]:
        """Yield the texts; the key is the text itself."""
        for place, record in read_records(Path(self.config.path), {"text": str, "choices": list, "label": int}):
            choices, label = cast("list[Any]", record["choices"]), cast(int, record["label"])
            if len(choices) != self.config.n_choices or not all(isinstance(choice, str) for choice in choices):
                raise DataError(f"{place}: `choices` should be {self.config.n_choices} texts, as n_choices says")
            if not 0 <= label < len(choices):
                raise DataError(f"{place}: `label` is {label}: it should be the place of a choice, from 0")
            others = [choice for number, choice in enumerate(choices) if number != label]
            texts = (str(record["text"]), choices[label], *others)
            yield Example(texts[0], dict(zip(self._names, texts, strict=True)))
