"""Byte-level byte-pair encoding: any text to token ids and back, without loss."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from ..core.vocabulary import END, MASK, PAD, ROLES, Roles, ends_a_sentence
from ..errors import DataError
from .files import write_whole

_OWN = Roles()


class Tokenizer:
    """Encode and decode text with byte-pair merges (Sennrich et al., arXiv 1508.07909) over bytes.

    `vocabulary`: the number of ids and the special ones; in one that is trained here `<|end|>` both opens and closes a
    text. The text `<|end|>` itself is encoded like any other: no text can bring in a special token. One from elsewhere
    may be of another kind, and lose what that loses; `roles` says which of its tokens are special.
    """

    def __init__(self, model: tokenizers.Tokenizer, origin: str = "tokenizer", roles: Roles = _OWN) -> None:
        size = 1 + max(model.get_vocab().values(), default=-1)
        self.roles = roles
        ends = sorted(number for token, number in model.get_vocab().items() if ends_a_sentence(token))
        self.vocabulary = replace(roles.vocabulary(size, model.token_to_id, origin), sentence_ends=tuple(ends))
        self._model = model
        self._model.encode_special_tokens = True
        self._model.no_truncation()
        self._model.no_padding()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn at most `vocab_size` tokens from texts; equal texts in equal order give an equal tokenizer."""
        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END, PAD, MASK],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        model.train_from_iterator(texts, trainer)
        return cls(model)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`; raise DataError when it is missing, broken or lacks a special token."""
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: can't be read: {error}") from None
        try:
            model = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{path}: is no tokenizer: {error}") from None
        return cls(model, str(path), Roles.beside(path))

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, whole or not at all, and beside it what its special tokens are where they differ."""
        if self.roles != _OWN:
            write_whole(path.with_name(ROLES), self.roles.text())
        write_whole(path, self.to_json() + "\n")

    def to_json(self) -> str:
        """Return what `save` writes: equal tokenizers give equal text."""
        return self._model.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        return list(self._model.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of several texts, encoded side by side on the machine's cores."""
        encoded = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, special tokens left out; bytes that are no UTF-8 come as U+FFFD."""
        return self._model.decode(list(ids), skip_special_tokens=True)

    def byte_length(self, token: int) -> int:
        """Return how many bytes of UTF-8 a token stands for; a special token stands for none."""
        return int(self.byte_lengths()[token])

    def byte_lengths(self) -> NDArray[np.int64]:
        """Return the byte length of every token (vocab_size,); what brings in no text of its own has 0."""
        added = self._model.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special} | set(self.vocabulary.ends)
        special |= {self.vocabulary.bos, self.vocabulary.pad, self.vocabulary.mask}
        by_byte = "ByteLevel" in str(json.loads(self._model.to_str())["decoder"])
        lengths = np.zeros(self.vocabulary.size, np.int64)
        for token, number in self._model.get_vocab().items():
            if number not in special:
                # A byte-level token is spelt with one letter for each byte, unless it was added as plain text.
                lengths[number] = len(token) if by_byte and number not in added else _written(token)
        return lengths


def _written(token: str) -> int:
    """Return how many bytes a token of another kind stands for: `▁` is a space, `<0x0A>` a byte, `##` goes on."""
    return 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else len(token.removeprefix("##").replace("▁", " ").encode())


def load_tokenizer(run: Path) -> Tokenizer:
    """Read the tokenizer that is stored with a run; raise DataError when there is none."""
    return Tokenizer.load(run / "tokenizer.json")
