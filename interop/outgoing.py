"""From the folder of a run back to a Hugging Face folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..registry.compose import compose
from ..registry.spec import load_spec
from ..registry.versions import check_packages
from ..registry.weights import SPEC, WEIGHTS, last_weights, matched, on_cpu
from .folders import CONFIG, KEPT_CONFIG, TOKENIZER, whole_folder
from .mapping import mapping
from .shards import INDEX
from .words import copy_kept

SHARD_BYTES = 5_000_000_000


def export_checkpoint(
    run: str | os.PathLike[str], out: str | os.PathLike[str], *, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write the weights of a run as a Hugging Face folder, as section `hf` of its spec says, and return that.

    Weights have the dtype that they have in the run. There are several files and an index where one would have more
    than `shard_bytes`. `config.json` comes from the folder that the run was imported from, where it was;
    `tokenizer.json` from the run. It is written beside its place and renamed: it is whole, or not there.

    Raises:
        SpecError: the run's spec has no section `hf`, or one that does not fit its model.
        CheckpointError: the folder is no run, or `out` is there already.
    """
    folder, place = Path(run), Path(out)
    if not (folder / SPEC).is_file():
        raise CheckpointError(f"{folder}: is no run: it has no {SPEC}")
    check_packages(folder)
    spec = load_spec(folder / SPEC)
    model = compose(spec, "meta")
    mapped = mapping(model, spec)
    with whole_folder(place) as beside:
        weights = matched(model, last_weights(folder), folder / WEIGHTS)
        tensors = {name: part for item in mapped for name, part in item.save(weights[item.parameter]).items()}
        _write(beside, tensors, shard_bytes)
        for kept, name in ((KEPT_CONFIG, CONFIG), (TOKENIZER, TOKENIZER)):
            if (folder / kept).is_file():
                shutil.copyfile(folder / kept, beside / name)
        copy_kept(folder, beside)
    return place


def _write(folder: Path, tensors: dict[str, Tensor], shard_bytes: int) -> None:
    """Write tensors to one file, or to several with an index that names the file of each."""
    shards = list(_dealt(tensors, shard_bytes))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        many = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = many if len(shards) > 1 else "model.safetensors"
        save_file(on_cpu({name: tensors[name] for name in names}), folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8", newline="\n")


def _dealt(tensors: dict[str, Tensor], most: int) -> Iterator[Iterable[str]]:
    """Yield the names of each file's tensors: as many, in order, as stay within `most` bytes, and one at least."""
    names: list[str] = []
    held = 0
    for name, tensor in tensors.items():
        if names and held + tensor.nbytes > most:
            yield names
            names, held = [], 0
        names.append(name)
        held += tensor.nbytes
    yield names
