"""Tell replaced tokens from true ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.head import Head
from ...core.linear import at_least_fp32
from ...core.losses import IGNORED, binary_cross_entropy
from ...core.objective import Loss, Objective, Prepared


class ReplacedTokenObjective(Objective):
    """Replace some tokens by others and ask of each whether it was (Clark et al. 2020).

    What stands in for a token is drawn from all tokens of the batch: as often as they are there, blind to context. That
    needs no generator; `generated_token` trains one, whose tokens are harder to tell.
    """

    fields = frozenset({"input_ids"})
    derives: ClassVar[bool] = True
    logits: ClassVar[int | None] = 1

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """rate: the share of tokens that others stand in for; one in the place of itself counts as true."""

        rate: float = 0.15

        def __post_init__(self) -> None:
            if not 0.0 < self.rate < 1.0:
                raise ValueError(f"rate: {self.rate} is not a share of tokens; between 0 and 1")

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Replace tokens of input_ids (B, T); targets are 1 where one was replaced, 0 where not, -100 at padding."""
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        inputs = {name: batch[name] for name in ("attention_mask", "document_ids") if name in batch}
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        chosen = real & (torch.rand(ids.shape, generator=generator) < self.config.rate)
        there = ids[real]
        drawn = torch.randint(max(len(there), 1), ids.shape, generator=generator)
        shown = torch.where(chosen, there[drawn] if len(there) else ids, ids)
        return Prepared(inputs | {"input_ids": shown}, (shown != ids).long().masked_fill(~real, IGNORED), mask)

    def loss(self, hidden: Tensor, head: Head, prepared: Prepared) -> Loss:
        """Return the summed binary cross-entropy (nats) of hidden (B, T, C), by the head's first logit."""
        total, right = binary_cross_entropy(head(hidden, prepared.mask)[..., 0], prepared.targets)
        return Loss(total, prepared.count, {"correct": right})

    def reference(self, hidden: Tensor, head: Head, prepared: Prepared) -> Loss:
        """Compute the same from probabilities, of the targets alone."""
        asked = prepared.targets != IGNORED
        share = torch.sigmoid(at_least_fp32(head(hidden, prepared.mask))[..., 0][asked])
        wanted = prepared.targets[asked] == 1
        total = -torch.where(wanted, share, 1.0 - share).log().sum()
        return Loss(total, prepared.count, {"correct": ((share > 0.5) == wanted).sum()})
