"""Pairs of texts, a source and what it should become: of one's own, or code and what it says that it does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from ...core.data import DEFAULT_TOKENIZER, Data, DataConfig, Example, TextField, TokenizerOptions
from ...core.reading import read_records, read_text, stdlib_files

BODY_LINES = 8  # of a function, beside its `def`, that the sample shows


class PairsData(Data):
    """Give pairs of texts, `source` and `target`, each pair a row of its own."""

    rows = "examples"
    fields = MappingProxyType(
        {
            "source": TextField("source_ids", "source_mask", opened=False),
            "target": TextField("target_ids", "target_mask", opened=False),
        }
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(DataConfig):
        """Choose the pairs.

        `source`: a sample that needs no download; `stdlib` pairs the functions of the running Python's standard
        library (their `def` and the first lines of the body) with the first sentence of their docstring. `path` stands
        in its place: a `.tsv` of two columns, source and target, or a `.jsonl` of objects that have these as keys.
        Texts of more than `seq_len` tokens are cut.
        """

        source: Literal["stdlib"] = "stdlib"
        path: str | None = None
        seq_len: int = 128
        tokenizer: TokenizerOptions = DEFAULT_TOKENIZER

    config: Config

    def examples(self) -> Iterator[Example]:
        """Yield the pairs; the key is the pair itself, so that a pair that comes twice stays on one side."""
        for source, target in self._pairs():
            yield Example(f"{source}\t{target}", {"source": source, "target": target})

    def _pairs(self) -> Iterator[tuple[str, str]]:
        if self.config.path is not None:
            for _, record in read_records(Path(self.config.path), {"source": str, "target": str}):
                yield str(record["source"]), str(record["target"])
            return
        for _, path in stdlib_files():
            yield from described_functions(read_text(path))


def described_functions(code: str) -> Iterator[tuple[str, str]]:
    """Yield (head, first sentence of the docstring) of each function in Python source that has both."""
    lines = code.split("\n")  # a form feed ends no line of Python
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) > 1:
            sentence = first_sentence(ast.get_docstring(node) or "")
            text = node.body[0]
            if sentence and node.lineno < text.lineno:
                body = lines[text.end_lineno : node.end_lineno][:BODY_LINES]
                shown = "\n".join(lines[node.lineno - 1 : text.lineno - 1] + body)
                yield re.sub(rf"(?m)^ {{0,{node.col_offset}}}", "", shown), sentence


def first_sentence(docstring: str) -> str:
    """Return a docstring's first sentence on one line, at most its first paragraph; empty when it has no letter."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?]) ", paragraph, maxsplit=1)[0]
    return sentence if any(letter.isalpha() for letter in sentence) else ""
