"""What objectives share that make a source and a target out of plain text: rows taken apart, and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .losses import IGNORED
from .objective import Prepared
from .vocabulary import Vocabulary


def check_spans(rate: float, span: float) -> None:
    """Raise ValueError, as a `Config` does, where a share of tokens or a mean length of spans makes no sense."""
    if not 0.0 < rate < 1.0:
        raise ValueError(f"rate: {rate} is not a share of tokens; between 0 and 1")
    if span < 1.0:
        raise ValueError(f"span: {span} is not a number of tokens; at least 1")


def first_documents(batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield the first document of each row of `input_ids` (B, T), without padding, (L,) each."""
    ids, mask, doc = batch["input_ids"], batch.get("attention_mask"), batch.get("document_ids")
    for number, row in enumerate(ids):
        real = torch.ones_like(row, dtype=torch.bool) if mask is None else mask[number].bool()
        yield row[real if doc is None else real & (doc[number] == doc[number][:1])]


def bare(text: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Return a text (L,) without the token that opens it and the one that closes it, where they are there."""
    start = 1 if len(text) and int(text[0]) == vocabulary.bos else 0
    end = len(text) - 1 if len(text) > start and int(text[-1]) in vocabulary.ends else len(text)
    return text[start:end]


def sentences(text: Tensor, vocabulary: Vocabulary) -> list[Tensor]:
    """Cut a text (L,) into sentences, each with what ends it; one that has no end within is cut in the middle.

    A sentence is a stretch that tokens end which the vocabulary names: the rule looks at tokens alone, so that a full
    stop behind an abbreviation, or in a number that it parts, ends one too.
    """
    ends = torch.isin(text, torch.tensor(vocabulary.sentence_ends, dtype=text.dtype))
    cuts = (ends[:-1] & ~ends[1:]).nonzero().flatten() + 1
    if not len(cuts) and len(text) > 1:
        cuts = torch.tensor([len(text) // 2])
    return list(text.tensor_split(cuts.tolist()))


def padded(texts: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor | None]:
    """Return texts (L,) as rows (B, T) and their mask (B, T); no mask where all are of one length."""
    rows = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(text) for text in texts])
    if bool((lengths == rows.shape[1]).all()):
        return rows, None
    return rows, (torch.arange(rows.shape[1]) < lengths.unsqueeze(1)).long()


def pairs(
    firsts: Sequence[Tensor], seconds: Sequence[Tensor], vocabulary: Vocabulary, most: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Return two texts a row as a model reads them, and where the second begins in each row (B,).

    A row is [opening] first [closing] second [closing]; `token_type_ids` are 1 from the second text on. Of more than
    `most` tokens a row loses the ends of its texts, the longer one first.
    """
    rows, kinds, starts = [], [], []
    edge, close = (torch.tensor([token]) for token in (vocabulary.bos, vocabulary.eos))
    room = max(most - 3, 0)
    for first, second in zip(firsts, seconds, strict=True):
        first = first[: max(room - len(second), room // 2)]
        second = second[: room - len(first)]
        rows.append(torch.cat([edge, first, close, second, close]))
        starts.append(len(first) + 2)
        kinds.append((torch.arange(len(rows[-1])) >= starts[-1]).long())
    ids, mask = padded(rows, vocabulary.pad)
    inputs = {"input_ids": ids, "token_type_ids": padded(kinds, 0)[0]}
    return inputs if mask is None else inputs | {"attention_mask": mask}, torch.tensor(starts)


def real_rows(batch: Mapping[str, Tensor], name: str) -> Iterator[Tensor]:
    """Yield the rows of one field of ids (B, T), `x_ids` with its mask `x_mask` where there is one, without padding."""
    mask = batch.get(f"{name.removesuffix('_ids')}_mask")
    for number, row in enumerate(batch[name]):
        yield row if mask is None else row[mask[number].bool()]


def rewritten(sources: Sequence[Tensor], targets: Sequence[Tensor], vocabulary: Vocabulary) -> Prepared:
    """Return what an encoder reads, sources (S,), and a decoder writes behind the opening token, targets (T,).

    The closing token is put behind each. Rows are padded to the longest, with masks where they differ.
    """
    source, source_mask = _rows(sources, vocabulary)
    target, mask = _rows(targets, vocabulary)
    opening = target.new_full((len(target), 1), vocabulary.bos)
    inputs = {"input_ids": source, "decoder_input_ids": torch.cat([opening, target[:, :-1]], dim=1)}
    if source_mask is not None:
        inputs["attention_mask"] = source_mask
    if mask is not None:
        inputs["decoder_attention_mask"] = mask
        target = target.masked_fill(mask == 0, IGNORED)
    return Prepared(inputs, target, mask)


def _rows(texts: Sequence[Tensor], vocabulary: Vocabulary) -> tuple[Tensor, Tensor | None]:
    """Return texts, closed, as rows (B, T) and their mask (B, T); no mask where all are of one length."""
    return padded([torch.cat([text, text.new_full((1,), vocabulary.eos)]) for text in texts], vocabulary.pad)
