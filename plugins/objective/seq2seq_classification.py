"""Name the class of a whole text that a model of two stacks reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.objective import CrossEntropyConfig, Objective, Prepared


class Seq2seqClassificationObjective(Objective):
    """Ask for the label of each text, which both stacks read, the second behind the opening token (Lewis et al. 2020).

    So the second stack's last token has seen all of the text from both sides, and once more in order: let the head
    pool the last one.
    """

    fields = frozenset({"labels"})
    per_token: ClassVar[bool] = False
    sequences: ClassVar[int] = 2

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """Take the options of cross-entropy alone."""

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Split labels (B,) from input_ids (B, T); the decoder reads the same tokens, one later."""
        assert self.vocabulary is not None
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        inputs["decoder_input_ids"] = torch.cat([torch.full_like(ids[:, :1], self.vocabulary.bos), ids[:, :-1]], dim=1)
        if mask is not None:
            inputs["decoder_attention_mask"] = mask
        return Prepared(inputs, batch["labels"], mask)
