"""Prepare data for training: read it, split it, tokenize it and lay it out in rows."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

from ..core.data import Data, ImageField, LabelField, TextField
from ..errors import DataError, PluginError
from . import tokens as storage
from .dataset import Dataset, Report, Side
from .files import write_whole
from .packing import Ints, plan
from .rows import ArrayColumn, Column, ExampleRows, Rows, StreamRows, Text, TextColumn
from .survey import Survey, fields_of
from .tokenizer import Tokenizer, load_tokenizer

Sides = tuple[Ints, Ints]


def prepare(
    data: Data, out: Path, *, lookahead: int, seed: int, tokenizer: Tokenizer | None = None, cache: Path | None = None
) -> Dataset:
    """Read data and return its batches; keep the tokenizer and a fingerprint of the data in the run folder `out`.

    `lookahead`: tokens beyond `seq_len` in a row of streamed text, 1 where the target is the next token. `seed`: of the
    order of batches. A tokenizer stored in `out` is used again; else `tokenizer` is taken; else one is trained on the
    training side. `cache`: where tokens go that are too many for memory, `out/tokens` unless given.

    Raises DataError for unreadable, empty or unfit data, and for data that changed since `out` began with it.
    """
    _check_options(data)
    survey = Survey(data)
    tokenizer = _choose_tokenizer(survey, out, tokenizer)
    examples = survey.sides()
    _check_unchanged(survey, out / "data.json")
    texts = _tokenize(survey, tokenizer, cache or out / "tokens") if tokenizer else []
    classes = _classes(survey)
    train, held_out = (
        _streams(data, texts[0], examples, lookahead)
        if data.rows == "stream"
        else _tables(survey, texts, classes, examples)
    )
    report = Report(
        train=_count(survey, texts, examples, 0, train),
        held_out=_count(survey, texts, examples, 1, held_out),
        vocab_size=tokenizer.vocabulary.size if tokenizer else None,
        classes=classes,
        text_bytes={text.field.ids: _text_bytes(text, examples[1], tokenizer) for text in texts if tokenizer},
    )
    if tokenizer:
        tokenizer.save(out / "tokenizer.json")
    write_whole(out / "data.json", json.dumps({"fingerprint": survey.digest, **report.as_dict()}, indent=2) + "\n")
    return Dataset(data, tokenizer, train, held_out, report, seed)


def _check_options(data: Data) -> None:
    """Refuse options that the declared fields don't go with."""
    texts = fields_of(data, TextField)
    if data.rows == "stream" and not len(texts) == len(data.fields) == 1:
        raise PluginError(f"data `{data.name}`: a stream must declare one field, of text: not {dict(data.fields)}")
    for option in ("seq_len", "tokenizer"):
        given = getattr(data.config, option) is not None
        if texts and not given:
            raise DataError(f"data.{option}: `{data.name}` gives text, {', '.join(texts)}, and needs it")
        if given and not texts:
            raise DataError(f"data.{option}: `{data.name}` gives {', '.join(data.fields)}, no text: leave it out")


def _choose_tokenizer(survey: Survey, out: Path, given: Tokenizer | None) -> Tokenizer | None:
    """Read the examples, and return the tokenizer for their text: stored, given or trained; None without text."""
    options = survey.data.config.tokenizer
    stored = (out / "tokenizer.json").exists()
    tokenizer = load_tokenizer(out) if stored else given
    if options is None or tokenizer is not None:
        deque(survey.read(), maxlen=0)
    else:
        tokenizer = Tokenizer.train(survey.read(), options.vocab_size)
    if options is None or tokenizer is None:
        return None
    if tokenizer.vocabulary.size > options.vocab_size:
        which = f"the one stored in {out}" if stored else "the one given"
        raise DataError(
            f"data.tokenizer.vocab_size: {options.vocab_size} is less than the tokenizer's {tokenizer.vocabulary.size} "
            f"({which}): raise it, or begin a run with a new tokenizer"
        )
    return tokenizer


def _check_unchanged(survey: Survey, record: Path) -> None:
    """Refuse to go on with other data than the run began with: its batches and its held-out side would be others."""
    if not record.exists():
        return
    try:
        before = json.loads(record.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{record}: can't be read as the record of a run's data: {error!r}") from None
    if before != survey.digest:
        raise DataError(
            f"{record}: the data is not what this run began with (fingerprint {before}, now {survey.digest}): "
            "bring that data back (the `stdlib` sample changes with the version of Python), or start a new run"
        )


def _tokenize(survey: Survey, tokenizer: Tokenizer, cache: Path) -> list[Text]:
    """Return the tokens of each field of text, in memory or, when they are too many, below `cache`."""
    data = survey.data
    names = fields_of(data, TextField)
    assert data.config.seq_len is not None  # _check_options has seen it
    limit = sys.maxsize if data.rows == "stream" else data.config.seq_len
    documents = partial(storage.encode, data, tokenizer)
    if sum(survey.text_bytes) > storage.IN_MEMORY_BYTES:
        digest = blake2b((survey.digest + tokenizer.to_json()).encode(), digest_size=16).hexdigest()
        tokens = storage.on_disk(documents, names, limit, cache, digest)
    else:
        tokens = storage.in_memory(documents(), names, limit)
    if any(len(each) != len(survey.held) for each in tokens):
        raise DataError(f"data: `{data.name}` changed while it was read: {len(survey.held)} examples, then other ones")
    fields = (field for field in data.fields.values() if isinstance(field, TextField))
    return [Text(field, each, tokenizer.vocabulary.pad) for field, each in zip(fields, tokens, strict=True)]


def _streams(data: Data, text: Text, examples: Sides, lookahead: int) -> tuple[Rows, Rows]:
    """Lay out both sides of a stream of documents in rows."""
    assert data.config.seq_len is not None  # _check_options has seen it
    seq_len, lengths = data.config.seq_len, text.tokens.lengths
    have, need = int(lengths[examples[0]].sum()), seq_len + lookahead
    if have < need:
        raise DataError(f"data.seq_len: a row takes {need} tokens, and the training side has {have}: bring more data")
    train, held_out = (StreamRows(text, side, plan(lengths, side, seq_len, lookahead)) for side in examples)
    return train, held_out


def _tables(survey: Survey, texts: Sequence[Text], classes: Sequence[str], examples: Sides) -> tuple[Rows, Rows]:
    """Lay out both sides with a row for each example."""
    columns: list[Column] = [TextColumn(text) for text in texts]
    for name, field in survey.data.fields.items():
        if isinstance(field, ImageField):
            columns.append(ArrayColumn.of_images(field, survey.others[name]))
        elif isinstance(field, LabelField):
            columns.append(ArrayColumn.of_labels(field, survey.others[name], classes))
    return ExampleRows(columns, examples[0]), ExampleRows(columns, examples[1])


def _classes(survey: Survey) -> tuple[str, ...]:
    """Return the distinct labels in order: that of the numbers if all are whole numbers, else that of the letters."""
    labels = {str(label) for name in fields_of(survey.data, LabelField) for label in survey.others[name]}
    numbers = all(label.removeprefix("-").isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label) if numbers else 0, label)))


def _count(survey: Survey, texts: Sequence[Text], examples: Sides, side: int, rows: Rows) -> Side:
    members = examples[side]
    return Side(
        examples=len(members),
        bytes=survey.text_bytes[side],
        tokens=sum(int(text.tokens.lengths[members].sum()) for text in texts),
        rows=len(rows.uneven),
        cut=sum(int(text.tokens.cut[members].sum()) for text in texts),
    )


def _text_bytes(text: Text, members: Ints, tokenizer: Tokenizer) -> int:
    lengths = tokenizer.byte_lengths()
    return sum(int(lengths[text.tokens[example]].sum()) for example in members)
