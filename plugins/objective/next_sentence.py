"""Tell whether one text goes on with another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.objective import CrossEntropyConfig, Objective, Prepared
from ...core.rewriting import bare, first_documents, pairs, sentences


class NextSentenceObjective(Objective):
    """Cut each text in two between sentences, and ask of half of the pairs made anew: is it one (Devlin et al. 2019)?

    Class 0 is what goes on, 1 what comes from another row of the batch. Of a row that several documents share, the
    first is read.
    """

    fields = frozenset({"input_ids"})
    per_token: ClassVar[bool] = False
    derives: ClassVar[bool] = True
    logits: ClassVar[int | None] = 2

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """rate: the share of texts that go on with another's second half. types: whether the model is told by
        `token_type_ids` where the second text begins.
        """

        rate: float = 0.5
        types: bool = True

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.0 < self.rate < 1.0:
                raise ValueError(f"rate: {self.rate} is not a share of texts; between 0 and 1")

    config: Config

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Make pairs out of input_ids (B, T), no longer than T; targets are (B,), 0 or 1."""
        assert self.vocabulary is not None
        halves = [self._halves(bare(text, self.vocabulary)) for text in first_documents(batch)]
        rows = len(halves)
        other = torch.rand(rows, generator=generator) < self.config.rate if rows > 1 else torch.zeros(rows).bool()
        far = (torch.arange(rows) + torch.randint(1, max(rows, 2), (rows,), generator=generator)) % rows
        firsts, seconds = [first for first, _ in halves], list[Tensor]()
        for row, (away, moved) in enumerate(zip(far.tolist(), other.tolist(), strict=True)):
            own, another = halves[row][1], halves[away][1]
            # Of one length either way, or the length would tell what goes on.
            seconds.append((another if moved else own)[: min(len(own), len(another))])
        inputs, _ = pairs(firsts, seconds, self.vocabulary, batch["input_ids"].shape[1])
        if not self.config.types:
            del inputs["token_type_ids"]
        return Prepared(inputs, other.long(), inputs.get("attention_mask"))

    def _halves(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return a text (L,) in two, cut at the end of the sentence that is nearest to its middle."""
        assert self.vocabulary is not None
        pieces = sentences(text, self.vocabulary)
        ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)[:-1]
        at = int(ends[(ends - len(text) / 2).abs().argmin()]) if len(ends) else len(text)
        return text[:at], text[at:]
