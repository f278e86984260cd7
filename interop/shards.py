"""The tensors in a Hugging Face folder: named, checked and read one at a time from any number of safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

INDEX = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MOST_JSON = 2**26  # bytes of an index or a config


@dataclass(frozen=True)
class Published:
    """Tell of a tensor in a file, without reading it: its shape and its dtype as safetensors spells it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Shards:
    """Give the tensors of a folder by name; `found` holds what is known of each.

    Raises:
        CheckpointError: there are none, a file is missing, damaged, outside the folder or only a pickle, or a tensor is
            named twice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, Published] = {}
        named = self._indexed()
        for file in sorted(set(named.values())) if named else self._unindexed():
            for name, published in _headers(file):
                if name in self.found:
                    raise CheckpointError(f"{file}: {shown(name)} is in {self.found[name].file.name} too")
                self.found[name] = published
        if named:
            self._check_index(named)

    def empty(self, name: str) -> Tensor:
        """Return a tensor of the same shape and dtype that holds no numbers."""
        published = self.found[name]
        return torch.empty(published.shape, dtype=DTYPES[published.dtype], device="meta")

    def read(self, name: str) -> Tensor:
        """Return a tensor as it lies in its file, which is mapped for as long as the tensor is held."""
        file = self.found[name].file
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: can't be read as safetensors: {error}") from None

    def _indexed(self) -> dict[str, Path]:
        """Return the file of each tensor as the index says; nothing where there is none."""
        path = self.folder / INDEX
        if not path.exists() and not path.is_symlink():
            return {}
        content = read_json(self.folder, INDEX)
        weight_map = content.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path}: has no weight_map, which names the file of each tensor")
        return {name: inside(self.folder, file, f"{path}: {shown(name)}") for name, file in weight_map.items()}

    def _unindexed(self) -> list[Path]:
        names = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if names:
            return [inside(self.folder, name, str(self.folder)) for name in names]
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: is no folder; give one that holds config.json and *.safetensors")
        pickles = sorted(path.name for pattern in PICKLES for path in self.folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{self.folder}: has its weights as pickles only ({pickles[0]}), which may run code when they are "
                'read: write them as safetensors first, with save_file(torch.load("'
                f'{pickles[0]}", weights_only=True), "model.safetensors") from safetensors.torch, where they are '
                "trusted"
            )
        raise CheckpointError(f"{self.folder}: has no *.safetensors")

    def _check_index(self, named: Mapping[str, Path]) -> None:
        """Refuse an index that does not say what the files hold."""
        for name, file in named.items():
            if name not in self.found:
                raise CheckpointError(f"{file}: has no {shown(name)}, which {INDEX} says is there")
            if self.found[name].file != file:
                raise CheckpointError(f"{self.found[name].file}: has {shown(name)}, which {INDEX} says is in {file}")
        for name, published in self.found.items():
            if name not in named:
                raise CheckpointError(f"{published.file}: has {shown(name)}, which {INDEX} does not name")


def inside(folder: Path, name: object, who: str) -> Path:
    """Return the path of a file in a folder; `who` names it.

    Raises:
        CheckpointError: it is not the name of a file that is there, or leads out of the folder.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or not name.isprintable() or set(name) & set("/\\"):
        raise CheckpointError(
            f"{who}: names the file {shown(name)}, which is not a plain name: only the folder is read"
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{who}: {name} is a link that leads out of the folder: put the file itself there")
    if not path.is_file():
        raise CheckpointError(f"{who}: {name} is missing")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON map from a folder; raise CheckpointError where it is none, or names a key twice."""
    content = _json(folder, name)
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / name}: should be a map")
    return content


def read_maps(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read a JSON list of maps from a folder; raise CheckpointError where it is none, or names a key twice."""
    content = _json(folder, name)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise CheckpointError(f"{folder / name}: should be a list of maps")
    return content


def _json(folder: Path, name: str) -> object:
    path = inside(folder, name, str(folder))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [key for key, _ in pairs]
            raise ValueError(f"it names {shown(next(key for key in names if names.count(key) > 1))} twice")
        return found

    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"it has more than {MOST_JSON:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read as JSON: {error}") from None


def shown(name: object) -> str:
    """Return a name out of a file as messages show it: short, and with nothing that a terminal obeys."""
    text = str(name)
    text = text if len(text) <= 200 else f"{text[:197]}..."
    return f"'{''.join(sign if sign.isprintable() else sign.encode('unicode_escape').decode() for sign in text)}'"


def _headers(file: Path) -> Iterator[tuple[str, Published]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                yield name, Published(file, tuple(part.get_shape()), part.get_dtype())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: can't be read as safetensors: {error}") from None
