"""The token ids that an objective has to know: how many there are and which ones are special."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import DataError

END, PAD, MASK = "<|end|>", "<|pad|>", "<|mask|>"
"""How a tokenizer that is trained here spells its special tokens; the end of a text is also what opens one."""
ROLES = "special_tokens.json"
"""The file beside a `tokenizer.json` from elsewhere that says which of its tokens stand for what."""


@dataclass(frozen=True)
class Vocabulary:
    """Say which ids a tokenizer gives: `size` of them, and those with a meaning of their own.

    `pad` fills rows, `bos` opens a text, `eos` closes it (it may be the same id), `mask` stands for a hidden token (-1
    where there is none). `stops`: others that end what a model writes, such as the end of a turn. `sentence_ends`:
    those that end a sentence: full stops, question and exclamation marks, and ends of lines.
    """

    size: int
    pad: int
    bos: int
    eos: int
    mask: int
    stops: tuple[int, ...] = ()
    sentence_ends: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """Return the ids that end what a model writes."""
        return (self.eos, *self.stops)

    def hiding(self, objective: str) -> int:
        """Return `mask` for an objective that hides tokens; raise DataError where there is none."""
        if self.mask < 0:
            raise DataError(f"objective {objective} hides tokens behind a mask, and the tokenizer has no such token")
        return self.mask


def ends_a_sentence(token: str) -> bool:
    """Say whether a token, as a tokenizer spells it, ends a sentence: a mark at its end, or a line's end in it.

    Closing quotes, brackets and spaces may follow the mark. Spelt byte by byte, a line's end is `Ċ` and a space `Ġ`.
    """
    bare = token.rstrip(" ▁Ġ\"')]}»")
    return bare.endswith((".", "!", "?", "…", "。")) or "Ċ" in token or "\n" in token or token == "<0x0A>"


@dataclass(frozen=True)
class Roles:
    """Say how a tokenizer spells the special tokens of a `Vocabulary`; those of a tokenizer trained here by default."""

    pad: str = PAD
    bos: str = END
    eos: str = END
    mask: str | None = MASK
    stops: tuple[str, ...] = ()

    @classmethod
    def beside(cls, tokenizer: Path) -> Roles:
        """Read the roles of a `tokenizer.json`, from the file beside it where there is one.

        Raises:
            DataError: the file can't be read.
        """
        path = tokenizer.with_name(ROLES)
        if not path.exists():
            return cls()
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            roles = cls(**{**said, "stops": tuple(said["stops"])})
            texts = (roles.pad, roles.bos, roles.eos, *roles.stops, "" if roles.mask is None else roles.mask)
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("a special token is a text")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: does not say which tokens are special: {error}") from None
        return roles

    def text(self) -> str:
        """Return the text of the file that `beside` reads."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def vocabulary(self, size: int, id_of: Callable[[str], int | None], origin: str) -> Vocabulary:
        """Return the ids of the tokens; `id_of` gives that of a token, None where it is not one; `origin` names it.

        Raises:
            DataError: it has no such token.
        """

        def special(token: str) -> int:
            number = id_of(token)
            if number is None:
                where = "it must come from data that Transom prepared, or from a folder that Transom imported"
                raise DataError(f"{origin}: has no token {token}: {where}")
            return number

        mask = -1 if self.mask is None else special(self.mask)
        pad, bos, eos = special(self.pad), special(self.bos), special(self.eos)
        return Vocabulary(size, pad, bos, eos, mask, tuple(map(special, self.stops)))
