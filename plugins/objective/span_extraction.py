"""Find where a text answers a question."""

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


class SpanExtractionObjective(Objective):
    """Ask for the first and the last token of an answer, among all tokens of question and text (Devlin et al. 2019).

    The head's first logit of each token says how well it begins the answer, its second how well it ends it.
    """

    fields = frozenset({"question_ids", "before_ids", "answer_ids", "after_ids"})
    derives: ClassVar[bool] = True
    logits: ClassVar[int | None] = 2
    places: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """length: the most tokens of a question with its text; an answer that is cut off is not asked for. types:
        whether the model is told by `token_type_ids` where the text begins.
        """

        length: int = 384
        types: bool = True

        def __post_init__(self) -> None:
            if self.length < 4:
                raise ValueError(f"length: {self.length} has no room for a question and a text; at least 4")

    config: Config

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Put question_ids before the text, which is before_ids, answer_ids and after_ids, all (B, T).

        Targets (B, 2) are the columns of the answer's first and last token.
        """
        assert self.vocabulary is not None
        vocabulary = self.vocabulary
        question, before, answer, after = (
            [bare(row, vocabulary) for row in real_rows(batch, name)]
            for name in ("question_ids", "before_ids", "answer_ids", "after_ids")
        )
        texts = [torch.cat(parts) for parts in zip(before, answer, after, strict=True)]
        inputs, starts = pairs(question, texts, vocabulary, self.config.length)
        first = starts + torch.tensor([len(text) for text in before])
        last = first + torch.tensor([len(text) for text in answer]) - 1
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        there = (last >= first) & (last < mask.sum(1) - 1)  # the closing token is behind the text
        targets = torch.stack([first, last], 1).masked_fill(~there.unsqueeze(1), IGNORED)
        if not self.config.types:
            del inputs["token_type_ids"]
        return Prepared(inputs, targets, inputs.get("attention_mask"))

    def loss(self, hidden: Tensor, head: Head, prepared: Prepared) -> Loss:
        """Return the summed cross-entropy of hidden (B, T, C) between tokens, of beginnings and ends."""
        logits = at_least_fp32(head(hidden, prepared.mask))[..., :2].transpose(1, 2)
        if prepared.mask is not None:
            logits = logits.masked_fill(~prepared.mask.bool().unsqueeze(1), torch.finfo(logits.dtype).min)
        flat, targets = logits.flatten(0, 1), prepared.targets.flatten()
        total = torch.nn.functional.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum")
        return Loss(total, prepared.count, {"correct": (flat.argmax(-1) == targets).sum()})

    def reference(self, hidden: Tensor, head: Head, prepared: Prepared) -> Loss:
        """Compute the same row by row, of real tokens alone."""
        logits = at_least_fp32(head(hidden, prepared.mask))
        total, right = logits.sum() * 0.0, torch.zeros((), dtype=torch.int64)
        for row, wanted in enumerate(prepared.targets.tolist()):
            real = slice(None) if prepared.mask is None else prepared.mask[row].bool()
            columns = torch.arange(logits.shape[1])[real].tolist()
            for which, column in enumerate(wanted):
                if column != IGNORED:
                    shares = torch.log_softmax(logits[row, real, which], dim=0)
                    total = total - shares[columns.index(column)]
                    right = right + int(columns[int(shares.argmax())] == column)
        return Loss(total, prepared.count, {"correct": right})
