"""Predict a target sequence from a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.losses import IGNORED
from ...core.objective import CrossEntropyConfig, Objective, Prepared


class Seq2seqLmObjective(Objective):
    """Ask at each token of the target for the next one, given the source (Sutskever et al. 2014)."""

    fields = frozenset({"source_ids", "target_ids"})
    asks_next: ClassVar[bool] = True
    sequences: ClassVar[int] = 2

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """Take the options of cross-entropy alone."""

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Read source_ids (B, S); the decoder reads `target_ids` (B, T) behind the opening token."""
        assert self.vocabulary is not None
        target, mask = batch["target_ids"], batch.get("target_mask")
        opening = target.new_full((target.shape[0], 1), self.vocabulary.bos)
        inputs = {"input_ids": batch["source_ids"], "decoder_input_ids": torch.cat([opening, target[:, :-1]], dim=1)}
        if "source_mask" in batch:
            inputs["attention_mask"] = batch["source_mask"]
        if mask is not None:
            inputs["decoder_attention_mask"] = mask
            target = target.masked_fill(mask == 0, IGNORED)
        return Prepared(inputs, target, mask)
