"""Texts, each with several others of which one belongs to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ...core.data import DEFAULT_TOKENIZER, Data, DataConfig, Example, TextField, TokenizerOptions
from ...core.reading import read_records, read_text, stdlib_files
from ...errors import DataError

SHOWN, STRIDE = 4, 40  # lines of a text, and from one text to the next


class ChoicesData(Data):
    """Give texts with what may go on with them: the right one first, then the others in their order."""

    rows = "examples"

    @dataclass(frozen=True, kw_only=True)
    class Config(DataConfig):
        """Choose the texts.

        `source`: a sample that needs no download; `stdlib` shows a few lines of the running Python's standard library,
        and asks which line goes on, of this and other places. `path`: what stands in its place, a `.jsonl` of objects
        with `text`, `choices` and `label`, the place of the right one, from 0. `n_choices`: how many texts there are to
        choose from. `seq_len`: the most tokens of a text; longer ones are cut.
        """

        source: Literal["stdlib"] = "stdlib"
        path: str | None = None
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
        for text, choices, label in self._texts() if self.config.path is None else self._records(self.config.path):
            others = [choice for number, choice in enumerate(choices) if number != label]
            yield Example(text, dict(zip(self._names, (text, choices[label], *others), strict=True)))

    def _records(self, path: str) -> Iterator[tuple[str, Sequence[str], int]]:
        """Yield (text, choices, place of the right one) of a file."""
        for place, record in read_records(Path(path), {"text": str, "choices": list, "label": int}):
            choices, label = cast("list[Any]", record["choices"]), cast(int, record["label"])
            if len(choices) != self.config.n_choices or not all(isinstance(choice, str) for choice in choices):
                raise DataError(f"{place}: `choices` should be {self.config.n_choices} texts, as n_choices says")
            if not 0 <= label < len(choices):
                raise DataError(f"{place}: `label` is {label}: it should be the place of a choice, from 0")
            yield str(record["text"]), choices, label

    def _texts(self) -> Iterator[tuple[str, Sequence[str], int]]:
        """Yield the same of the standard library: what is wrong goes on with the texts before."""
        seen = deque[str](maxlen=self.config.n_choices - 1)
        for _, path in stdlib_files():
            lines = [line for line in read_text(path).split("\n") if line.strip()]
            for at in range(0, len(lines) - SHOWN, STRIDE):
                following = lines[at + SHOWN]
                if len(seen) == seen.maxlen:
                    yield "\n".join(lines[at : at + SHOWN]), [following, *seen], 0
                seen.append(following)
