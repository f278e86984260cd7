"""Predict each next token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.losses import IGNORED
from ...core.objective import CrossEntropyConfig, Objective, Prepared


class CausalLmObjective(Objective):
    """Ask at each token for the next one of its document."""

    fields = frozenset({"input_ids"})
    lookahead = 1
    asks_next: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """Take the options of cross-entropy alone."""

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Read all but the last of input_ids (B, T + 1); the targets are all but the first."""
        ids, mask, doc = batch["input_ids"], batch.get("attention_mask"), batch.get("document_ids")
        inputs, targets = {"input_ids": ids[:, :-1]}, ids[:, 1:]
        if mask is not None:
            inputs["attention_mask"] = mask[:, :-1]
            targets = targets.masked_fill(mask[:, 1:] == 0, IGNORED)
        if doc is not None:
            inputs["document_ids"] = doc[:, :-1]
            targets = targets.masked_fill(doc[:, 1:] != doc[:, :-1], IGNORED)
        return Prepared(inputs, targets, inputs.get("attention_mask"))
