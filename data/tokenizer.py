"""Byte-level byte-pair encoding: any text to token ids and back, without loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from ..core.vocabulary import END, MASK, PAD, Vocabulary
from ..errors import DataError
from .files import write_whole


class Tokenizer:
    """Encode and decode text with byte-pair merges (Sennrich et al., arXiv 1508.07909) over bytes.

    `vocabulary`: the number of ids and the special ones; `<|end|>` both opens and closes a text. The text `<|end|>`
    itself is encoded like any other: no text can bring in a special token.
    """

    def __init__(self, model: tokenizers.Tokenizer, origin: str = "tokenizer") -> None:
        def special(token: str) -> int:
            number = model.token_to_id(token)
            if number is None:
                raise DataError(f"{origin}: has no token {token}: it must come from data that Transom prepared")
            return number

        end, pad, mask = special(END), special(PAD), special(MASK)
        self.vocabulary = Vocabulary(size=model.get_vocab_size(), pad=pad, bos=end, eos=end, mask=mask)
        self._model = model
        self._model.encode_special_tokens = True

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
        return cls(model, str(path))

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, whole or not at all."""
        write_whole(path, self.to_json() + "\n")

    def to_json(self) -> str:
        """Return what `save` writes: equal tokenizers give equal text."""
        return self._model.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        return list(self._model.encode(text).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of several texts, encoded side by side on the machine's cores."""
        return [encoding.ids for encoding in self._model.encode_batch_fast(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, special tokens left out; bytes that are no UTF-8 come as U+FFFD."""
        return self._model.decode(list(ids), skip_special_tokens=True)

    def byte_length(self, token: int) -> int:
        """Return how many bytes of UTF-8 a token stands for; a special token stands for none."""
        return int(self.byte_lengths()[token])

    def byte_lengths(self) -> NDArray[np.int64]:
        """Return the byte length of every token (vocab_size,)."""
        special = {self.vocabulary.eos, self.vocabulary.pad, self.vocabulary.mask}
        lengths = np.zeros(self.vocabulary.size, np.int64)
        for token, number in self._model.get_vocab().items():
            # A byte-level token is spelt with one letter for each byte.
            lengths[number] = 0 if number in special else len(token)
        return lengths


def load_tokenizer(run: Path) -> Tokenizer:
    """Read the tokenizer that is stored with a run; raise DataError when there is none."""
    return Tokenizer.load(run / "tokenizer.json")
