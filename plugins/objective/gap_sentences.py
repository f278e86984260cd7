"""Write the sentences that were cut out of a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...core.objective import CrossEntropyConfig, Objective, Prepared
from ...core.rewriting import bare, first_documents, rewritten, sentences


class GapSentencesObjective(Objective):
    """Put one mask in the place of whole sentences, and ask for these, one after the other (Zhang et al. 2020).

    Of a row that several documents share, the first is read.
    """

    fields = frozenset({"input_ids"})
    asks_next: ClassVar[bool] = True
    sequences: ClassVar[int] = 2
    derives: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """rate: the share of sentences that is cut out, at least one. choose: which: the `principal` ones, that say
        most of what the others say (F1 of ROUGE-1, by tokens), `random` ones, or the `first`.
        """

        rate: float = 0.3
        choose: Literal["principal", "random", "first"] = "principal"

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.0 < self.rate < 1.0:
                raise ValueError(f"rate: {self.rate} is not a share of sentences; between 0 and 1")

    config: Config

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Cut sentences out of input_ids (B, T): the encoder reads what is left, the decoder writes the sentences."""
        assert self.vocabulary is not None
        mask = torch.tensor([self.vocabulary.hiding(self.name)])
        sources, targets = [], []
        for text in first_documents(batch):
            pieces = sentences(bare(text, self.vocabulary), self.vocabulary)
            gone = self._chosen(pieces, generator)
            sources.append(torch.cat([mask if place in gone else piece for place, piece in enumerate(pieces)]))
            targets.append(torch.cat([text[:0], *(pieces[place] for place in sorted(gone))]))
        return rewritten(sources, targets, self.vocabulary)

    def _chosen(self, pieces: Sequence[Tensor], generator: torch.Generator) -> set[int]:
        """Return the places of the sentences that are cut out; one at least stays."""
        count = min(max(round(len(pieces) * self.config.rate), 1), len(pieces) - 1)
        worth = torch.arange(len(pieces), 0, -1).float()
        if self.config.choose == "random":
            worth = torch.rand(len(pieces), generator=generator)
        elif self.config.choose == "principal":
            worth = torch.tensor(principal([piece.tolist() for piece in pieces]))
        return set(worth.argsort(descending=True, stable=True)[:count].tolist())


def principal(pieces: Sequence[Sequence[int]]) -> list[float]:
    """Return the F1 of ROUGE-1 of each sentence and all others, which says how much of a text it stands for."""
    counts = [Counter(piece) for piece in pieces]
    whole = sum(counts, Counter[int]())
    found = []
    for count in counts:
        shared = sum(min(times, whole[token] - times) for token, times in count.items())
        found.append(2.0 * shared / max(whole.total(), 1))  # of shared / own and shared / rest: own + rest is all
    return found
