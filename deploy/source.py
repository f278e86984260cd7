"""Where a model to export comes from: one in memory, or the folder of a run."""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ..core.topology import Topology
from ..core.vocabulary import ROLES, Roles
from ..errors import CheckpointError, ExportError
from ..registry.weights import load_model

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Source:
    """Hold a model as it is exported, fp32 on CPU in eval mode, and its tokenizer where there is one.

    `tokenizer`: the path of its file, and what was read from it.
    """

    model: Topology
    tokenizer: tuple[Path, Tokenizer] | None = None

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

    def copy_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer to a folder, and the file that says what its special tokens are where it has one."""
        if self.tokenizer is None:
            return
        path = self.tokenizer[0]
        shutil.copyfile(path, folder / TOKENIZER)
        if path.with_name(ROLES).is_file():
            shutil.copyfile(path.with_name(ROLES), folder / ROLES)


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
    own = copy.deepcopy(given, {id(given.spec): given.spec})
    return Source(own.to("cpu", torch.float32).eval())


def _read_run(run: Path) -> Source:
    model = load_model(run)
    tokenizer = run / TOKENIZER
    if not tokenizer.is_file():
        return Source(model)
    try:
        return Source(model, (tokenizer, Tokenizer.from_file(str(tokenizer))))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{tokenizer}: is no tokenizer: {error}") from None
