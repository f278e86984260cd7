"""The contract of the kind `data`: where examples come from and what each of their fields is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from numpy.typing import NDArray

from .component import Component

SMALLEST_VOCABULARY = 256 + 3  # every byte, and the three special tokens


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """Choose the tokenizer: `bpe` is byte-level byte-pair encoding, trained on the training side of the data.

    `vocab_size`: the most tokens it may have, special ones included; a small corpus may give fewer.
    """

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = 8192

    def __post_init__(self) -> None:
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"vocab_size: {self.vocab_size} is too small: the 256 bytes and 3 specials take {SMALLEST_VOCABULARY}"
            )


DEFAULT_TOKENIZER = TokenizerOptions()


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Hold the options that all data has; a component's `Config` adds its own.

    `hold_out`: the share of examples, in (0, 1), that is kept for evaluation. `seq_len`: tokens in a row that a model
    reads. `seq_len` and `tokenizer` are for data with text alone.
    """

    hold_out: float = 0.04
    seq_len: int | None = None
    tokenizer: TokenizerOptions | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.hold_out < 1.0:
            raise ValueError(f"hold_out: {self.hold_out} is no share: it must lie between 0 and 1, both excluded")
        if self.seq_len is not None and self.seq_len < 2:
            raise ValueError(f"seq_len: {self.seq_len} is too short: a row needs 2 tokens or more")


@dataclass(frozen=True)
class TextField:
    """Declare a field of type `str`; batches hold it as token ids and a mask (1 real, 0 padding), under these names.

    `opened`: whether the ids begin with the opening token; where a model puts that itself, they don't. They end with
    the closing one.
    """

    ids: str = "input_ids"
    mask: str = "attention_mask"
    opened: bool = True


@dataclass(frozen=True)
class ImageField:
    """Declare a field that is a float32 array (channels, height, width) in [0, 1], of one shape in all examples."""

    values: str = "pixel_values"


@dataclass(frozen=True)
class LabelField:
    """Declare a field that names a class, `str` or `int`; batches hold the class's place among the sorted classes."""

    labels: str = "labels"


Field = TextField | ImageField | LabelField


@dataclass(frozen=True)
class Example:
    """Hold one example: its fields by name, and the key by which it is held out or not.

    The key must be the same in every reading and on every machine; equal keys stay on the same side of the split.
    """

    key: str
    fields: Mapping[str, str | int | NDArray[Any]]


# Under other names: the class below takes these for its own attributes.
_Example = Example
_TextField = TextField
_ImageField = ImageField
_LabelField = LabelField


class Data(Component, ABC):
    """Give examples to learn from.

    `fields` declares what each field of an example is. `rows` declares how examples become rows of a batch: `stream`
    cuts and packs the documents of one text field into rows of equal length, `examples` gives each a row of its own.
    Both may be set by `__init__` where they follow from the options.
    """

    Config: TypeAlias = DataConfig
    Tokenizer: TypeAlias = TokenizerOptions
    Example: TypeAlias = _Example
    TextField: TypeAlias = _TextField
    ImageField: TypeAlias = _ImageField
    LabelField: TypeAlias = _LabelField

    kind: ClassVar[str] = "data"
    fields: Mapping[str, Field]
    rows: Literal["stream", "examples"] = "examples"

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """Read all examples, always in the same order; raise DataError, with file and line, at what can't be read."""
