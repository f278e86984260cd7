"""Objectives that ask for the wrong token, or whose sums do not add up."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from planted.fault import planted
from transom.core.losses import CHUNK, IGNORED
from transom.core.objective import Loss, Prepared
from transom.registry.manager import get

CAUSAL_LM, MASKED_LM = get("objective", "causal_lm"), get("objective", "masked_lm")
PERMUTED_LM = get("objective", "permuted_lm")


@planted(27, "asked for its next")
class ShiftedTwice(CAUSAL_LM):
    """Targets are shifted though they are the next tokens already."""

    def prepare(self, batch, generator):
        made = super().prepare(batch, generator)
        return Prepared(made.inputs, F.pad(made.targets[:, 1:], (0, 1), value=IGNORED), made.mask)


@planted(27, "each target")
class NotShifted(CAUSAL_LM):
    """Each token is asked for itself: the shift is left to somebody else."""

    def prepare(self, batch, generator):
        made = super().prepare(batch, generator)
        targets = made.inputs["input_ids"].masked_fill(made.targets == IGNORED, IGNORED)
        return Prepared(made.inputs, targets, made.mask)


@planted(27, "padding is asked for")
class AsksForPadding(CAUSAL_LM):
    """Padding is a target: the mask is handed on and not used."""

    def prepare(self, batch, generator):
        made = super().prepare(batch, generator)
        return Prepared(made.inputs, batch["input_ids"][:, 1:], made.mask)


@planted(27, "the token before a document's first")
class AcrossDocuments(CAUSAL_LM):
    """A document's last token is asked for the next one's first."""

    def prepare(self, batch, generator):
        made = super().prepare(batch, generator)
        plain = {name: tensor for name, tensor in batch.items() if name != "document_ids"}
        return Prepared(made.inputs, super().prepare(plain, generator).targets, made.mask)


@planted(27, "once it was prepared")
class WritesTheBatch(CAUSAL_LM):
    """Targets are ignored in place, in the raw batch itself."""

    def prepare(self, batch, generator):
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        inputs = {"input_ids": ids[:, :-1].clone()}
        if mask is not None:
            inputs["attention_mask"] = mask[:, :-1]
            ids.masked_fill_(mask == 0, IGNORED)
        return Prepared(inputs, ids[:, 1:], inputs.get("attention_mask"))


@planted(27, "counts other targets")
class CountsTheIgnored(CAUSAL_LM):
    """The mean that is made of the sums counts targets that are ignored."""

    def loss(self, hidden, head, prepared):
        found = super().loss(hidden, head, prepared)
        return Loss(found.total, torch.tensor(prepared.targets.numel()), found.sums)

    def reference(self, hidden, head, prepared):
        found = super().reference(hidden, head, prepared)
        return Loss(found.total, torch.tensor(prepared.targets.numel()), found.sums)


@planted(27, "without a target")
class NoTargetIsNan(CAUSAL_LM):
    """The sum is a mean times the count, and the mean of no target is 0 / 0."""

    def loss(self, hidden, head, prepared):
        return self.reference(hidden, head, prepared)

    def reference(self, hidden, head, prepared):
        found = super().reference(hidden, head, prepared)
        mean = F.cross_entropy(head(hidden, prepared.mask).flatten(0, -2), prepared.targets.flatten())
        return Loss(mean * found.count, found.count, found.sums)


@planted(27, "a row that is ignored differs")
class MeanOfTheBatch(CAUSAL_LM):
    """The sum is divided by the number of rows: micro-batches give more than the whole."""

    def loss(self, hidden, head, prepared):
        found = super().loss(hidden, head, prepared)
        if head.projection() is None:
            return found
        return Loss(found.total / len(hidden), found.count, found.sums)

    def reference(self, hidden, head, prepared):
        found = super().reference(hidden, head, prepared)
        return Loss(found.total / len(hidden), found.count, found.sums)


@planted(27, "the loss")
class LastChunkLost(CAUSAL_LM):
    """Chunks are counted by `//`, and what does not fill one is left out."""

    def loss(self, hidden, head, prepared):
        hidden, targets = hidden.flatten(0, -2), prepared.targets.flatten()
        whole = CHUNK * max(1, len(targets) // CHUNK)
        return super().loss(hidden[:whole], head, Prepared(prepared.inputs, targets[:whole]))


@planted(27, "torch's own generator")
class DrawsAnywhere(MASKED_LM):
    """Masks are drawn from torch's own generator, where the one that is given was meant: no rerun gives the same."""

    def prepare(self, batch, generator):
        return super().prepare(batch, torch.default_generator)


@planted(27, "is shown")
class ShowsTheAnswer(MASKED_LM):
    """What is asked for is shown as it is: the masked ids are made, and the raw ones handed on."""

    def prepare(self, batch, generator):
        made = super().prepare(batch, generator)
        return Prepared({**made.inputs, "input_ids": batch["input_ids"]}, made.targets, made.mask)


@planted(27, "what is given comes after")
class AsksForTheFirst(PERMUTED_LM):
    """What is asked for stands first in the order: it is seen by all that should tell it."""

    def prepare(self, batch, generator):
        made = super().prepare(batch, generator)
        return Prepared(
            made.inputs | {"order": made.inputs["order"].max() - made.inputs["order"] + 1}, made.targets, made.mask
        )


@planted(27, "each target")
class AsksNextToIt(PERMUTED_LM):
    """Targets are those of the columns beside the ones that are asked for."""

    def prepare(self, batch, generator):
        made = super().prepare(batch, generator)
        beside = batch["input_ids"].roll(1, 1).gather(1, made.inputs["asked"])
        return Prepared(made.inputs, beside.masked_fill(made.targets == IGNORED, IGNORED), made.mask)
