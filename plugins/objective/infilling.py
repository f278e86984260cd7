"""Write a text whose spans were hidden, without saying how long they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.objective import CrossEntropyConfig, Objective, Prepared
from ...core.rewriting import check_spans, first_documents, rewritten, sentences


class InfillingObjective(Objective):
    """Put one mask in the place of each span, empty ones too, and ask for the whole text (Lewis et al. 2020).

    Of a row that several documents share, the first is read.
    """

    fields = frozenset({"input_ids"})
    asks_next: ClassVar[bool] = True
    sequences: ClassVar[int] = 2
    derives: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """rate: the share of tokens that is hidden. span: the mean of their number in a row, drawn from a Poisson.

        permute_sentences: whether sentences are put in any order before, while the text is asked for as it was.
        """

        rate: float = 0.3
        span: float = 3.0
        permute_sentences: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            check_spans(self.rate, self.span)

    config: Config

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Hide spans of input_ids (B, T) from the encoder; the decoder writes the text behind the opening token."""
        assert self.vocabulary is not None
        mask, texts = self.vocabulary.hiding(self.name), list(first_documents(batch))
        shown = [self._permuted(text, generator) for text in texts] if self.config.permute_sentences else texts
        return rewritten([self._hidden(text, mask, generator) for text in shown], texts, self.vocabulary)

    def _permuted(self, text: Tensor, generator: torch.Generator) -> Tensor:
        """Return the sentences of a text (L,) in any order."""
        assert self.vocabulary is not None
        pieces = sentences(text, self.vocabulary)
        return torch.cat([pieces[place] for place in torch.randperm(len(pieces), generator=generator).tolist()])

    def _hidden(self, text: Tensor, mask: int, generator: torch.Generator) -> Tensor:
        """Return a text (L,) with a mask in the place of each span."""
        sizes = self._sizes(round(len(text) * self.config.rate), generator)
        kept = len(text) - sum(sizes)
        # No two spans touch: each stands in a gap of its own between the tokens that are kept.
        if len(sizes) > kept + 1:
            sizes[kept:] = [sum(sizes[kept:])]
        gaps = torch.randperm(kept + 1, generator=generator)[: len(sizes)].sort().values.tolist()
        pieces, at, left = [], 0, 0
        for gap, size in zip(gaps, sizes, strict=True):
            pieces += [text[at : at + gap - left], text.new_full((1,), mask)]
            at, left = at + gap - left + size, gap
        return torch.cat([*pieces, text[at:]])

    def _sizes(self, total: int, generator: torch.Generator) -> list[int]:
        """Draw the sizes of spans until they hold `total` tokens; the last is cut to fit."""
        sizes: list[int] = []
        while (rest := total - sum(sizes)) > 0:
            drawn = torch.poisson(torch.tensor(self.config.span), generator=generator)
            sizes.append(min(int(drawn), rest))
        return sizes
