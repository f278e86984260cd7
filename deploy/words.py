"""Turn texts and chats to tokens and back, as the tokenizer of an exported folder does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from ..core.vocabulary import Roles
from ..errors import ExportError, InputError
from .chat import CHAT, Chat, ChatTemplate
from .manifest import Manifest

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
Text = str | tuple[str, str]
"""A text, or two that a model reads as a pair."""


@dataclass(frozen=True)
class Row:
    """Hold a text's tokens as a model reads them whole; `types`: 1 at the tokens of a pair's second text, else 0."""

    ids: list[int]
    types: list[int]


class Words:
    """Encode and decode with a folder's tokenizer.

    No text can bring in a special token; only a chat's template does.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Read the files of `folder`, which its `manifest` describes.

        Raises:
            ExportError: a file is broken.
        """
        self._folder = folder
        self._special = manifest.special_ids
        self._plain = self._read(literal=True)
        self._marked: Tokenizer | None = None  # made when the first chat comes
        self._template = ChatTemplate.beside(folder, spelt_tokens(folder))

    def _read(self, *, literal: bool) -> Tokenizer:
        """Read the tokenizer; `literal`: whether special tokens in a text are taken for the letters they are."""
        path = self._folder / TOKENIZER
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ExportError(f"{path}: is no tokenizer: {error}") from None
        tokenizer.encode_special_tokens = literal
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return texts to continue, each begun with the opening token, as in training."""
        return [[*self._one("bos"), *ids] for ids in self._bare(texts)]

    def sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Return texts to write about, each ended with the closing token, as in training."""
        return [[*ids, *self._one("eos")] for ids in self._bare(texts)]

    def chat(self, messages: Chat, variables: Mapping[str, Any]) -> list[int]:
        """Return the tokens of a chat, which its template begins and ends; `variables` as in `ChatTemplate.render`.

        Raises:
            InputError: there is no template, or it refuses the chat.
        """
        if self._template is None:
            raise InputError(f"{self._folder}: has no {CHAT}, so a chat can't be written as text: give a text")
        if self._marked is None:
            self._marked = self._read(literal=False)
        text = self._template.render(messages, variables)
        return list(self._marked.encode(text, add_special_tokens=False).ids)

    def whole(self, texts: Sequence[Text], most: int | None = None) -> list[Row]:
        """Return texts to read whole, with the special tokens that the tokenizer puts around them.

        Where it has no such rule, a text is opened and closed as in training, and a pair's second text closed too. With
        `most`, texts are cut at their ends to that many tokens, of a pair the longer one first.
        """
        return [self._framed([text] if isinstance(text, str) else list(text), most) for text in texts]

    def _framed(self, texts: list[str], most: int | None) -> Row:
        opening, closing = self._one("bos"), self._one("eos")
        added = self._plain.num_special_tokens_to_add(len(texts) > 1)
        parts = self._plain.encode_batch(texts, add_special_tokens=False)
        if most is not None:
            spent = added or len(opening) + len(closing) * len(parts)
            _cut(parts, max(most - spent, 0))
        if added:
            row = self._plain.post_process(parts[0], parts[1] if len(parts) > 1 else None)
            return Row(row.ids, row.type_ids)
        rows = [[*part.ids, *closing] for part in parts]
        types = [number for number, row in enumerate(rows) for _ in row]
        return Row(opening + [token for row in rows for token in row], [0] * len(opening) + types)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out; bytes that are no UTF-8 come as U+FFFD."""
        text: str = self._plain.decode(list(ids), skip_special_tokens=True)
        return text

    def _bare(self, texts: Sequence[str]) -> list[list[int]]:
        return [row.ids for row in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _one(self, role: str) -> list[int]:
        """Return the token of a role, in a list; an empty one where there is none."""
        return [self._special[role]] if role in self._special else []


def _cut(parts: Sequence[Encoding], room: int) -> None:
    """Cut the tokens of one text, or of two, to `room` of them in all."""
    first, second = len(parts[0]), sum(map(len, parts[1:]))
    first = min(first, max(room - second, room - room // 2)) if second else min(first, room)
    for part, size in zip(parts, (first, min(second, room - first)), strict=False):
        part.truncate(size)


def spelt_tokens(folder: Path) -> dict[str, str]:
    """Return how special tokens are spelt, by the names that templates use, as the files beside a tokenizer say.

    Raises:
        ExportError: a file can't be read.
    """
    path = folder / SETTINGS
    if not path.is_file():
        roles = asdict(Roles.beside(folder / TOKENIZER))
        return {f"{role}_token": roles[role] for role in ("bos", "eos", "pad", "mask") if roles[role] is not None}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        named = {name: value for name, value in said.items() if name.endswith("_token")}
    except (OSError, ValueError, AttributeError) as error:
        raise ExportError(f"{path}: can't be read: {error}") from None
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
