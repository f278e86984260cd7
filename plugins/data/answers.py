"""Questions, each with a text that holds its answer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

from ...core.data import DEFAULT_TOKENIZER, Data, DataConfig, Example, TextField, TokenizerOptions
from ...core.reading import read_records, read_text, stdlib_files
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

        `source`: a sample that needs no download; `stdlib` asks for the default of a parameter, of each function of the
        running Python's standard library, in the line that defines it. `path` stands in its place: a `.jsonl` of
        objects with `question`, `context`, `answer`, a stretch of the context, and `start`, the number of characters
        before it. Parts of more than `seq_len` tokens are cut.
        """

        source: Literal["stdlib"] = "stdlib"
        path: str | None = None
        seq_len: int = 128
        tokenizer: TokenizerOptions = DEFAULT_TOKENIZER

    config: Config

    def examples(self) -> Iterator[Example]:
        """Yield the questions; the key is the text, so that all that is asked of one text stays on one side."""
        for question, context, start, answer in self._questions():
            parts = (question, context[:start], answer, context[start + len(answer) :])
            yield Example(context, dict(zip(PARTS, parts, strict=True)))

    def _questions(self) -> Iterator[tuple[str, str, int, str]]:
        """Yield (question, context, characters before the answer, answer)."""
        if self.config.path is None:
            for _, path in stdlib_files():
                yield from defaults(read_text(path))
            return
        columns = {"question": str, "context": str, "answer": str, "start": int}
        for place, record in read_records(Path(self.config.path), columns):
            context, answer, start = str(record["context"]), str(record["answer"]), cast(int, record["start"])
            if start < 0 or context[start : start + len(answer)] != answer:
                raise DataError(f"{place}: `answer` does not stand in `context` behind {start} characters")
            yield str(record["question"]), context, start, answer


def defaults(code: str) -> Iterator[tuple[str, str, int, str]]:
    """Yield a question for each function of Python source whose first line has a parameter with a default."""
    lines = code.split("\n")  # a form feed ends no line of Python
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.defaults:
            line, value = lines[node.lineno - 1], node.args.defaults[0]
            if value.end_lineno == value.lineno == node.lineno and line.isascii():
                name = [*node.args.posonlyargs, *node.args.args][-len(node.args.defaults)].arg
                bare, cut = line.strip(), len(line) - len(line.lstrip())
                yield (
                    f"{name} in {node.name}",
                    bare,
                    value.col_offset - cut,
                    line[value.col_offset : value.end_col_offset],
                )
