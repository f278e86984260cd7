"""Predict hidden tokens from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.losses import IGNORED
from ...core.objective import CrossEntropyConfig, Objective, Prepared


class MaskedLmObjective(Objective):
    """Hide some tokens and ask for them: most as the mask, some as random tokens, some as they are (Devlin 2019)."""

    fields = frozenset({"input_ids"})

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """rate: the share of tokens asked for. masked, random: the shares of those shown as the mask, or as another.

        edges: whether the tokens that open and close a text are asked for too.
        """

        rate: float = 0.15
        masked: float = 0.8
        random: float = 0.1
        edges: bool = True

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.0 < self.rate < 1.0:
                raise ValueError(f"rate: {self.rate} is not a share of tokens; between 0 and 1")
            if min(self.masked, self.random) < 0.0 or self.masked + self.random > 1.0:
                raise ValueError(f"masked: shares of {self.masked} and {self.random} random do not fit into 1")

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Hide tokens of input_ids (B, T); targets are -100 where nothing is asked for."""
        assert self.vocabulary is not None
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        inputs = {name: batch[name] for name in ("attention_mask", "document_ids") if name in batch}
        asked = torch.rand(ids.shape, generator=generator) < self.config.rate
        if mask is not None:
            asked &= mask.bool()
        if not self.config.edges:
            asked &= (ids != self.vocabulary.bos) & (ids != self.vocabulary.eos)
        fate = torch.rand(ids.shape, generator=generator)
        other = torch.randint(self.vocabulary.size, ids.shape, generator=generator)
        shown = torch.where(asked & (fate < self.config.masked), self.vocabulary.hiding(self.name), ids)
        replaced = asked & (fate >= self.config.masked) & (fate < self.config.masked + self.config.random)
        shown = torch.where(replaced, other, shown)
        return Prepared(inputs | {"input_ids": shown}, ids.masked_fill(~asked, IGNORED), mask)
