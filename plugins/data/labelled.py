"""Texts or images, each with the class that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...core.data import Data, DataConfig, Example, ImageField, LabelField, TextField
from ...core.reading import read_records, walk
from ...errors import DataError

TABLES = (".tsv", ".jsonl")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


class LabelledData(Data):
    """Give texts or images with a label, each a row of its own."""

    rows = "examples"

    @dataclass(frozen=True, kw_only=True)
    class Config(DataConfig):
        """Choose the examples.

        `source`: a sample that needs no download; `digits` is scikit-learn's, 1,797 images (1, 8, 8) in 10 classes.
        `path` stands in its place: a `.tsv` of two columns, text and label, or a `.jsonl` of objects that have these as
        keys; or a folder with a folder of images for each class, all images of one size. `seq_len` and `tokenizer` are
        for text alone, which needs both.
        """

        source: Literal["digits"] = "digits"
        path: str | None = None

        @property
        def is_text(self) -> bool:
            """Whether the examples are texts: `path` names a table."""
            return self.path is not None and Path(self.path).suffix in TABLES

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("seq_len", "tokenizer"):
                given = getattr(self, name) is not None
                if given != self.is_text:
                    raise ValueError(
                        f"{name}: images have no tokens: leave it out" if given else f"{name}: labelled text needs it"
                    )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.fields = {"text": TextField(), "label": LabelField()}
        if not config.is_text:
            self.fields = {"image": ImageField(), "label": LabelField()}

    def examples(self) -> Iterator[Example]:
        """Yield the examples; the key is a text itself, an image's path below the folder, or a digit's number."""
        if self.config.path is None:
            return digits()
        path = Path(self.config.path)
        if self.config.is_text:
            return labelled_texts(path)
        if path.is_dir():
            return labelled_images(path)
        raise DataError(f"data.path: {str(path)!r} is neither a folder of images nor a {' or '.join(TABLES)} of texts")


def labelled_texts(path: Path) -> Iterator[Example]:
    """Yield the texts of a table with their labels."""
    for _, record in read_records(path, {"text": str, "label": (str, int)}):
        yield Example(str(record["text"]), record)


def labelled_images(root: Path) -> Iterator[Example]:
    """Yield the images of a folder; the class is the name of the folder that stands directly below it."""
    pillow = needed("PIL.Image", "a folder of images", "pillow")
    for key, path in walk(root, IMAGES):
        label, *rest = key.split("/")
        if not rest:
            raise DataError(f"{path}: has no label: an image must lie in a folder named as its class")
        yield Example(key, {"image": pixels(pillow, path), "label": label})


def pixels(pillow: ModuleType, path: Path) -> NDArray[np.float32]:
    """Return an image as (1, height, width) when it is grey, else (3, height, width), in [0, 1]."""
    try:
        with pillow.open(path) as image:
            if image.mode in ("I", "F") or ";" in image.mode:
                raise DataError(f"{path}: has pixels of mode {image.mode}: it must have 8 bits for each colour")
            values = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"), np.float32)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise DataError(f"{path}: can't be read as an image: {error}") from None
    return np.atleast_3d(values).transpose(2, 0, 1) / np.float32(255)


def digits() -> Iterator[Example]:
    """Yield scikit-learn's handwritten digits, (1, 8, 8) in [0, 1]."""
    digits: Any = needed("sklearn.datasets", "source: digits", "scikit-learn").load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        fields = {"image": image[None].astype(np.float32) / np.float32(16), "label": int(label)}
        yield Example(f"digits/{number}", fields)


def needed(module: str, purpose: str, distribution: str) -> ModuleType:
    """Import a module that only some data needs; raise DataError saying what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        what = f"{purpose} needs {distribution} ({error})"
        raise DataError(f"data: {what}: install it with `pip install {distribution}`") from None
