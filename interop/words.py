"""What a Hugging Face folder says of its text: which tokens are special, and what else belongs to its tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..core.vocabulary import END, ROLES, Roles
from ..errors import CheckpointError
from .folders import CONFIG, TOKENIZER
from .shards import inside, read_json

GENERATION = "generation_config.json"
KEPT = (
    GENERATION, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
    "modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", "sentence_bert_config.json",
)  # fmt: skip
"""Files that go into a run and back out as they are, where they are there; so do those whose names begin as `LEGAL`."""
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
SPOKEN = ("tokenizer_config.json", "special_tokens_map.json")  # where tokens are named; elsewhere they are ids


def copy_kept(folder: Path, to: Path) -> None:
    """Copy the files of a folder that go with its weights and its tokenizer.

    Raises:
        CheckpointError: one is a link that leads out of the folder.
    """
    legal = (path.name for path in folder.iterdir() if path.name.upper().startswith(LEGAL))
    for name in sorted({*legal, *(name for name in KEPT if (folder / name).exists())}):
        (to / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(inside((folder / name).parent, Path(name).name, str(folder)), to / name)


def tokenizer_of(folder: Path) -> Tokenizer:
    """Return the tokenizer of a Hugging Face folder; raise CheckpointError where its file can't be read."""
    path = inside(folder, TOKENIZER, str(folder))
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path}: is no tokenizer: {error}") from None


def copy_text(folder: Path, run: Path) -> None:
    """Copy the tokenizer of a Hugging Face folder, where it has one, to a run, and all that goes with it.

    Raises:
        CheckpointError: a file can't be read, or the folder does not say which token ends a text.
    """
    copy_kept(folder, run)
    if not (folder / TOKENIZER).exists():
        return
    tokenizer = tokenizer_of(folder)
    shutil.copyfile(folder / TOKENIZER, run / TOKENIZER)
    if tokenizer.token_to_id(END) is None:
        (run / ROLES).write_text(_roles(folder, tokenizer).text(), encoding="utf-8", newline="\n")


def _roles(folder: Path, tokenizer: Tokenizer) -> Roles:
    """Return which tokens are special: a text is opened by what closes it, where nothing else opens one.

    What a decoder writes is opened by a token of its own, where there is one.
    """
    said = [read_json(folder, name) for name in (*SPOKEN, GENERATION, CONFIG) if (folder / name).exists()]

    def named(role: str) -> list[str]:
        return [token for config in said for token in _tokens(config, role, tokenizer)]

    def first(*roles: str) -> str | None:
        return next((token for role in roles for token in named(role)), None)

    eos = first("eos", "sep")
    if eos is None:
        where = f"neither {', '.join(SPOKEN)}, {GENERATION} nor {CONFIG} has an eos_token or an eos_token_id"
        raise CheckpointError(f"{folder / TOKENIZER}: nothing says which token ends a text: {where}")
    stops = tuple(dict.fromkeys(token for token in named("eos") if token != eos))
    return Roles(first("pad") or eos, first("decoder_start", "bos", "cls") or eos, eos, first("mask"), stops)


def _tokens(config: Mapping[str, Any], role: str, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the tokens that one file gives a role, by text or by id."""
    text = config.get(f"{role}_token")
    text = text.get("content") if isinstance(text, dict) else text
    if isinstance(text, str) and tokenizer.token_to_id(text) is not None:
        yield text
    ids = config.get(f"{role}_token_id")
    for number in ids if isinstance(ids, list) else [ids]:
        token = tokenizer.id_to_token(number) if type(number) is int and number >= 0 else None
        if token is not None:
            yield token
