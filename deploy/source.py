"""Where a model to export comes from: one in memory, or the folder of a run."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ..core.topology import Topology
from ..core.vocabulary import END, MASK, PAD
from ..errors import CheckpointError, ExportError
from ..registry.weights import load_model

TOKENIZER = "tokenizer.json"
# What the special tokens of a tokenizer that Transom made stand for.
SPECIAL = {"bos": END, "eos": END, "pad": PAD, "mask": MASK}


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
        ids = {role: self.tokenizer[1].token_to_id(text) for role, text in SPECIAL.items()}
        return {role: number for role, number in ids.items() if number is not None}

    def vocab_size(self, ids: int | None) -> int | None:
        """Return how many tokens can be written: what the tokenizer knows of the model's `ids`."""
        return ids if self.tokenizer is None else self.tokenizer[1].get_vocab_size()


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
