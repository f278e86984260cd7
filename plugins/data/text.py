"""Documents of plain text: the running Python's own sources, a folder of files, or one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from ...core.data import DEFAULT_TOKENIZER, Data, DataConfig, Example, TextField, TokenizerOptions
from ...core.reading import read_lines, read_text, stdlib_files, walk
from ...errors import DataError

DOCUMENT = 8_192  # characters of one file that make a document, to its next blank line
LONGEST = 4 * DOCUMENT  # where no blank line comes, the next line's end does


class TextData(Data):
    """Give text as a stream of documents, each cut into rows of `seq_len` tokens."""

    rows = "stream"
    fields = MappingProxyType({"text": TextField()})

    @dataclass(frozen=True, kw_only=True)
    class Config(DataConfig):
        """Choose the text.

        `source`: a sample that needs no download; `stdlib` is the standard library of the running Python. `path`
        stands in its place: a folder, whose files ending in `suffixes` are the documents, or one file, which is cut
        at blank lines into documents of about 8,192 characters, so that a part of it can be held out.
        """

        source: Literal["stdlib"] = "stdlib"
        path: str | None = None
        suffixes: tuple[str, ...] = (".txt", ".md", ".rst", ".py")
        seq_len: int = 128
        tokenizer: TokenizerOptions = DEFAULT_TOKENIZER

        def __post_init__(self) -> None:
            super().__post_init__()
            for suffix in self.suffixes:
                if not suffix.startswith("."):
                    raise ValueError(f"suffixes: {suffix!r} must begin with a dot")

    config: Config

    def examples(self) -> Iterator[Example]:
        """Yield the documents; the key is the path below the folder, or the file's name and the document's line."""
        for key, text in self._documents():
            if text.strip():
                yield Example(key, {"text": text})

    def _documents(self) -> Iterator[tuple[str, str]]:
        if self.config.path is None:
            return ((name, read_text(path)) for name, path in stdlib_files())
        root = Path(self.config.path)
        if root.is_dir():
            return ((name, read_text(path)) for name, path in walk(root, self.config.suffixes))
        if root.is_file():
            return cut(root)
        raise DataError(f"data.path: {self.config.path!r} is no file or folder")


def cut(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of the documents of one file, which together are the whole file; read it line by line."""
    first, length, lines = 1, 0, list[str]()
    for number, line in read_lines(path):
        lines.append(line)
        length += len(line)
        if length >= (LONGEST if line.strip() else DOCUMENT):
            yield f"{path.name}:{first}", "".join(lines)
            first, length, lines = number + 1, 0, []
    if lines:
        yield f"{path.name}:{first}", "".join(lines)
