"""Choose what goes on with a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.head import Head
from ...core.linear import at_least_fp32
from ...core.losses import IGNORED
from ...core.objective import Loss, Objective, Prepared
from ...core.rewriting import bare, pairs, real_rows


class MultipleChoiceObjective(Objective):
    """Ask which of several texts belongs to a text: each pair is a row, and gets one logit (Radford et al. 2018).

    The rows of a text follow each other; its logits are compared with each other.
    """

    fields = frozenset({"text_ids", "right_ids", "wrong_1_ids"})
    per_token: ClassVar[bool] = False
    derives: ClassVar[bool] = True
    logits: ClassVar[int | None] = 1

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """length: the most tokens of a text with a choice. types: whether the model is told by `token_type_ids` where
        the choice begins.
        """

        length: int = 384
        types: bool = True

        def __post_init__(self) -> None:
            if self.length < 4:
                raise ValueError(f"length: {self.length} has no room for a text and a choice; at least 4")

    config: Config

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Put text_ids before right_ids and each of wrong_1_ids, wrong_2_ids ..., all (B, T), in any order.

        Inputs have a row for each choice, (B * choices, T); targets (B,) say which is right.
        """
        assert self.vocabulary is not None
        vocabulary = self.vocabulary
        wrong = [f"wrong_{number}_ids" for number in range(1, len(batch)) if f"wrong_{number}_ids" in batch]
        texts, *choices = (
            [bare(row, vocabulary) for row in real_rows(batch, name)] for name in ("text_ids", "right_ids", *wrong)
        )
        count = len(choices)
        order = torch.rand(len(texts), count, generator=generator).argsort(1)
        seconds = [choices[which][row] for row, places in enumerate(order.tolist()) for which in places]
        inputs, _ = pairs([text for text in texts for _ in choices], seconds, vocabulary, self.config.length)
        if not self.config.types:
            del inputs["token_type_ids"]
        return Prepared(inputs, (order == 0).long().argmax(1), inputs.get("attention_mask"))

    def loss(self, hidden: Tensor, head: Head, prepared: Prepared) -> Loss:
        """Return the summed cross-entropy of hidden (B * choices, T, C) between the choices of each text."""
        logits = at_least_fp32(head(hidden, prepared.mask))[:, 0].unflatten(0, (len(prepared.targets), -1))
        total = torch.nn.functional.cross_entropy(logits, prepared.targets, ignore_index=IGNORED, reduction="sum")
        return Loss(total, prepared.count, {"correct": (logits.argmax(-1) == prepared.targets).sum()})

    def reference(self, hidden: Tensor, head: Head, prepared: Prepared) -> Loss:
        """Compute the same text by text."""
        logits = at_least_fp32(head(hidden, prepared.mask))[:, 0]
        total, right = logits.sum() * 0.0, torch.zeros((), dtype=torch.int64)
        for each, wanted in zip(logits.chunk(len(prepared.targets)), prepared.targets.tolist(), strict=True):
            if wanted != IGNORED:
                total = total + each.exp().sum().log() - each[wanted]
                right = right + int(int(each.argmax()) == wanted)
        return Loss(total, prepared.count, {"correct": right})
