"""Predict the last tokens of an order that is drawn anew for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.losses import IGNORED
from ...core.objective import CrossEntropyConfig, Objective, Prepared


class PermutedLmObjective(Objective):
    """Ask for the last tokens of a random order, each from those before it there, on both sides (Yang et al. 2019).

    Tokens before the first that is asked for are given from the start, so that they see one another.
    """

    fields = frozenset({"input_ids"})
    derives: ClassVar[bool] = True
    permutes: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """rate: the share of tokens that are asked for, the last of the order; at least one token of a row is."""

        rate: float = 1 / 6

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.0 < self.rate <= 1.0:
                raise ValueError(f"rate: {self.rate} is not a share of tokens; above 0, at most 1")

    config: Config

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Draw an order of input_ids (B, T), and ask for the columns (B, P) of its last tokens, in their order.

        `order` (B, T): 1 for what is given, 2 and on for what is asked for. Rows of fewer real tokens are asked for
        fewer; their first columns are padding, with targets -100.
        """
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "document_ids") if name in batch}
        drawn = torch.rand(ids.shape, generator=generator)
        real = torch.full(ids.shape[:1], ids.shape[1]) if mask is None else mask.sum(1)
        if mask is not None:
            drawn = drawn.masked_fill(mask == 0, -1.0)  # padding comes first
        columns = drawn.argsort(1)
        rank = columns.argsort(1)
        count = torch.minimum((real * self.config.rate).round().long().clamp(min=1), real)
        order = (rank - (ids.shape[1] - count.unsqueeze(1)) + 2).clamp(min=1)
        most = int(count.max()) if len(count) else 0
        asked = columns[:, ids.shape[1] - most :]
        wanted = torch.arange(most) >= most - count.unsqueeze(1)
        targets = ids.gather(1, asked).masked_fill(~wanted, IGNORED)
        return Prepared(inputs | {"order": order, "asked": asked}, targets, None if mask is None else wanted.long())
