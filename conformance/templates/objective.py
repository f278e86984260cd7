"""Predict hidden stretches of text from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from transom.core import Objective


class NewObjective(Objective):
    """Hide stretches of tokens behind the mask and ask for them (Joshi et al. 2020, "SpanBERT").

    The loss is the cross-entropy that every objective has unless it overrides `loss` and `reference`.
    """

    fields = frozenset({"input_ids"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """rate: about what share of the tokens is asked for. span: tokens of a stretch, less where some overlap."""

        rate: float = 0.15
        span: int = 3

        def __post_init__(self) -> None:
            if not 0.0 < self.rate < 1.0:
                raise ValueError(f"rate: {self.rate} is not a share of tokens; between 0 and 1")
            if self.span < 1:
                raise ValueError(f"span: {self.span} tokens make no stretch; at least 1")

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Objective.Prepared:
        """Hide tokens of input_ids (B, T) int64; targets are IGNORED where nothing is asked for."""
        assert self.vocabulary is not None, "the data has text, so that there is a tokenizer"
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        inputs = {name: batch[name] for name in ("attention_mask", "document_ids") if name in batch}
        first = torch.rand(ids.shape, generator=generator) < self.config.rate / self.config.span
        asked = first.clone()
        for later in range(1, self.config.span):
            asked[:, later:] |= first[:, :-later]
        if mask is not None:
            asked &= mask.bool()
        shown = ids.masked_fill(asked, self.vocabulary.mask)
        return Objective.Prepared(inputs | {"input_ids": shown}, ids.masked_fill(~asked, Objective.IGNORED), mask)
