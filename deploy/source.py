"""Where a model to export comes from: one in memory, or the folder of a run."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from ..core.topology import Topology
from ..core.vocabulary import ROLES, Roles
from ..errors import CheckpointError, ExportError
from ..registry.weights import load_model
from .chat import CHAT
from .words import SETTINGS, TOKENIZER

DATA, CONFIG = "data.json", "hf_config.json"
"""What a run's folder says of the data that it was trained on, and of the checkpoint that it was imported from."""


@dataclass(frozen=True)
class Source:
    """Hold a model as it is exported, fp32 on CPU in eval mode, and its tokenizer where there is one.

    `tokenizer`: the path of its file, and what was read from it. `run`: the folder that the model is from.
    """

    model: Topology
    tokenizer: tuple[Path, Tokenizer] | None = None
    run: Path | None = None

    @property
    def special_ids(self) -> dict[str, int]:
        """Return the ids of the tokenizer's special tokens by what they stand for."""
        if self.tokenizer is None:
            return {}
        said = asdict(Roles.beside(self.tokenizer[0]))
        ids = {role: self.tokenizer[1].token_to_id(said[role] or "") for role in ("bos", "eos", "pad", "mask")}
        return {role: number for role, number in ids.items() if number is not None}

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Return the ids of the other tokens that end what a model writes."""
        if self.tokenizer is None:
            return ()
        found = map(self.tokenizer[1].token_to_id, Roles.beside(self.tokenizer[0]).stops)
        return tuple(number for number in found if number is not None)

    def vocab_size(self, ids: int | None) -> int | None:
        """Return how many tokens can be written: what the tokenizer knows of the model's `ids`."""
        return ids if self.tokenizer is None else self.tokenizer[1].get_vocab_size()

    def copy_text(self, folder: Path) -> None:
        """Copy the tokenizer to a folder, and what is beside it: its special tokens, its settings, its chat template.

        Raises:
            CheckpointError: a file can't be read.
        """
        if self.tokenizer is None:
            return
        run = self.tokenizer[0].parent
        for name in (TOKENIZER, ROLES, SETTINGS):
            if (run / name).is_file():
                shutil.copyfile(run / name, folder / name)
        template = _chat_template(run)
        if template is not None:
            (folder / CHAT).write_text(template, encoding="utf-8", newline="\n")

    def labels(self, count: int) -> tuple[str, ...]:
        """Return the names of a head's `count` classes as the run says them, numbers for the rest; () where it doesn't.

        Raises:
            CheckpointError: a file can't be read.
        """
        names = () if self.run is None else _labels(self.run)
        if not 0 < len(names) <= count:
            return ()
        return (*names, *map(str, range(len(names), count)))


def read_source(model_or_run: Topology | str | os.PathLike[str]) -> Source:
    """Read a run's folder, or copy a model; the model that was given stays as it is.

    Raises:
        CheckpointError: the folder is no run, or holds no whole weights.
        ExportError: the model has no weights.
    """
    if not isinstance(model_or_run, Topology):
        return _read_run(Path(model_or_run))
    given = model_or_run
    if any(tensor.is_meta for tensor in given.state_dict().values()):
        raise ExportError("the model is on the meta device and has no weights: compose it on a real one")
    return Source(sharing(given).to("cpu", torch.float32).eval())


def sharing(model: Topology) -> Topology:
    """Return a copy of a model that shares the memory of its weights, as long as neither is moved or cast."""
    known: dict[int, Any] = {id(model.spec): model.spec}
    for weight in model.parameters():
        known[id(weight)] = nn.Parameter(weight.detach(), weight.requires_grad)
    for buffer in model.buffers():
        known[id(buffer)] = buffer.detach()
    return copy.deepcopy(model, known)


def _read_run(run: Path) -> Source:
    model = load_model(run)
    tokenizer = run / TOKENIZER
    if not tokenizer.is_file():
        return Source(model, run=run)
    try:
        return Source(model, (tokenizer, Tokenizer.from_file(str(tokenizer))), run)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{tokenizer}: is no tokenizer: {error}") from None


def _chat_template(run: Path) -> str | None:
    """Return the chat template of a run, from any of the places where the field keeps it: of several the default."""
    if (run / CHAT).is_file():
        return (run / CHAT).read_text(encoding="utf-8")
    for name in (SETTINGS, "chat_template.json"):
        said = _read_json(run / name).get("chat_template")
        if isinstance(said, list):
            said = next((one.get("template") for one in said if one.get("name") == "default"), None)
        if isinstance(said, str):
            return said
    return None


def _labels(run: Path) -> tuple[str, ...]:
    """Return what the classes are called: in the data that a run was trained on, or in the config it came with."""
    classes = _read_json(run / DATA).get("classes")
    if not classes:
        named = _read_json(run / CONFIG).get("id2label") or {}
        classes = [named[number] for number in sorted(named, key=int)]
    return tuple(map(str, classes))


def _read_json(path: Path) -> dict[str, Any]:
    """Return a file's map; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return dict(said)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from None
