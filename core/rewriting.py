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
    closed = [torch.cat([text, text.new_full((1,), vocabulary.eos)]) for text in texts]
    rows = torch.nn.utils.rnn.pad_sequence(closed, batch_first=True, padding_value=vocabulary.pad)
    lengths = torch.tensor([len(text) for text in closed])
    if bool((lengths == rows.shape[1]).all()):
        return rows, None
    return rows, (torch.arange(rows.shape[1]) < lengths.unsqueeze(1)).long()
