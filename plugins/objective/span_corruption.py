"""Write the spans that were cut out of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.objective import CrossEntropyConfig, Objective, Prepared
from ...core.rewriting import check_spans, first_documents, rewritten
from ...core.vocabulary import Vocabulary


class SpanCorruptionObjective(Objective):
    """Cut spans out of a text, leave a sentinel for each, and ask for them behind their sentinels (Raffel et al. 2020).

    Of a row that several documents share, the first is read. Sentinels are ids beyond those of the tokenizer.
    """

    fields = frozenset({"input_ids"})
    asks_next: ClassVar[bool] = True
    sequences: ClassVar[int] = 2
    derives: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """rate: the share of tokens that is cut out. span: their mean number in a row. sentinels: the most spans."""

        rate: float = 0.15
        span: float = 3.0
        sentinels: int = 100

        def __post_init__(self) -> None:
            super().__post_init__()
            check_spans(self.rate, self.span)
            if self.sentinels < 1:
                raise ValueError(f"sentinels: {self.sentinels} leaves nothing to mark a span with; at least 1")

    config: Config

    def __init__(self, config: Config, vocabulary: Vocabulary | None) -> None:
        super().__init__(config, vocabulary)
        self.extra_ids = config.sentinels

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Cut up input_ids (B, T): the encoder reads what is left, the decoder `targets` behind the opening token."""
        assert self.vocabulary is not None
        pairs = [self._cut(text, self.vocabulary.size, generator) for text in first_documents(batch)]
        return rewritten([left for left, _ in pairs], [cut for _, cut in pairs], self.vocabulary)

    def _cut(self, text: Tensor, first: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what is left of a text (L,), a sentinel in the place of each span, and the spans behind theirs.

        `first`: the id of the first sentinel.
        """
        length = len(text)
        hidden = min(max(round(length * self.config.rate), 1), length - 1)
        spans = min(max(round(hidden / self.config.span), 1), hidden, length - hidden, self.config.sentinels)
        if hidden < 1:
            return text, text[:0]
        sizes = zip(_parts(length - hidden, spans, generator), _parts(hidden, spans, generator), strict=True)
        left, cut, at = [], [], 0
        for number, (kept, gone) in enumerate(sizes):
            sentinel = text.new_full((1,), first + number)
            left += [text[at : at + kept], sentinel]
            cut += [sentinel, text[at + kept : at + kept + gone]]
            at += kept + gone
        return torch.cat(left), torch.cat(cut)


def _parts(total: int, count: int, generator: torch.Generator) -> list[int]:
    """Cut a whole number into `count` parts of at least 1, all ways alike."""
    cuts = (torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1).tolist()
    return [stop - start for start, stop in zip([0, *cuts], [*cuts, total], strict=True)]
