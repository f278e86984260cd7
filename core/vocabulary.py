"""The token ids that an objective has to know: how many there are and which ones are special."""

from __future__ import annotations

from dataclasses import dataclass

END, PAD, MASK = "<|end|>", "<|pad|>", "<|mask|>"
"""How a tokenizer spells its special tokens; the end of a text is also what opens one."""


@dataclass(frozen=True)
class Vocabulary:
    """Say which ids a tokenizer gives: `size` of them, and the four with a meaning of their own.

    `pad` fills rows, `bos` opens a text, `eos` closes it (it may be the same id), `mask` stands for a hidden token.
    """

    size: int
    pad: int
    bos: int
    eos: int
    mask: int
