"""Tell tokens that a generator made up from true ones, and train the generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ...core.head import Head
from ...core.linear import at_least_fp32
from ...core.losses import IGNORED, binary_cross_entropy
from ...core.objective import Asked, CrossEntropyConfig, Loss, Objective, Prepared
from ...core.topology import Topology
from ...core.vocabulary import Vocabulary


class GeneratedTokenObjective(Objective):
    """Hide some tokens, let a generator fill them in, and ask an encoder of each token if it is true (Clark 2020).

    The generator learns from the tokens that were hidden. What stands in for them is drawn from its logits, through
    which no gradient flows; a token that it hits counts as true.
    """

    fields = frozenset({"input_ids"})
    derives: ClassVar[bool] = True
    trains: ClassVar[frozenset[str]] = frozenset({"generator"})

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """rate: the share of tokens that is hidden. generated: the head that reads the generator. judged: the head
        that says by its first logit whether a token was made up. weight: what its mean loss counts beside the other.
        """

        rate: float = 0.15
        generated: str = "generated"
        judged: str = "replaced"
        weight: float = 50.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.0 < self.rate < 1.0:
                raise ValueError(f"rate: {self.rate} is not a share of tokens; between 0 and 1")
            if self.generated == self.judged:
                raise ValueError(f"judged: '{self.judged}' is the head that reads the generator")

    config: Config

    def __init__(self, config: Config, vocabulary: Vocabulary | None) -> None:
        super().__init__(config, vocabulary)
        self.weights = (1.0, config.weight)

    @classmethod
    def heads(cls, config: Any) -> Mapping[str, type[Objective]]:
        """Name the head of the generator, and that of the encoder."""
        return {config.generated: cls, config.judged: _Judged}

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Hide tokens of input_ids (B, T), and ask for them.

        `places` (N,): where the hidden tokens stand in the batch as one row. `chance` (N,), in [0, 1): what will be
        drawn there. The encoder's targets are 0 at each token until then.
        """
        assert self.vocabulary is not None
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        inputs = {name: batch[name] for name in ("attention_mask", "document_ids") if name in batch}
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        hidden = real & (torch.rand(ids.shape, generator=generator) < self.config.rate)
        inputs |= {"input_ids": ids.masked_fill(hidden, self.vocabulary.hiding(self.name))}
        places = hidden.flatten().nonzero().flatten()
        inputs |= {"places": places, "chance": torch.rand(len(places), generator=generator)}
        judged = torch.zeros_like(ids).masked_fill(~real, IGNORED)
        return Prepared(inputs, ids.masked_fill(~hidden, IGNORED), mask, {self.config.judged: judged})

    def asked(self, model: Topology, prepared: Prepared) -> Mapping[str, Asked]:
        """Ask the generator's head for what was hidden, and the encoder's which tokens the generator made up."""
        inputs = {name: tensor for name, tensor in prepared.inputs.items() if name not in ("places", "chance")}
        wanted, places, chance = prepared.targets, prepared.inputs["places"], prepared.inputs["chance"]
        hidden = model.generate(**inputs)  # type: ignore[operator]  # `trains` says that it is there
        head = cast(Head, model.heads[self.config.generated])
        tokens = drawn(head, hidden.detach().flatten(0, 1)[places], chance)
        filled = inputs["input_ids"].flatten().index_copy(0, places, tokens).view_as(wanted)
        out = model(**inputs | {"input_ids": filled}, logits=False)
        judged = prepared.others[self.config.judged]
        made_up = ((wanted != IGNORED) & (filled != wanted)).long()
        judged = torch.where(judged == IGNORED, judged, made_up)
        return {
            self.config.generated: Asked(self, hidden, Prepared(inputs, wanted, prepared.mask)),
            self.config.judged: Asked(_Judged(None, None), out.hidden, Prepared(inputs, judged, prepared.mask)),
        }


class _Judged(Objective):
    """Ask of each token, by the head's first logit, whether it was made up."""

    fields = frozenset({"input_ids"})
    derives: ClassVar[bool] = True
    logits: ClassVar[int | None] = 1

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Refuse: what is asked follows from what a generator drew."""
        raise NotImplementedError("what is asked of a judge is known once the generator has drawn")

    def loss(self, hidden: Tensor, head: Head, prepared: Prepared) -> Loss:
        """Return the summed binary cross-entropy (nats) of hidden (B, T, C)."""
        total, right = binary_cross_entropy(head(hidden, prepared.mask)[..., 0], prepared.targets)
        return Loss(total, prepared.count, {"correct": right})

    reference = loss


@torch.no_grad()
def drawn(head: Head, hidden: Tensor, chance: Tensor) -> Tensor:
    """Return a token for each of hidden (N, C), drawn from its logits: where `chance` (N,) falls in their shares."""
    shares = torch.softmax(at_least_fp32(head(hidden.unsqueeze(0)))[0], dim=-1).cumsum(-1)
    found = (shares < chance.unsqueeze(1)).sum(-1)  # how many tokens lie before it
    return found.clamp(max=shares.shape[-1] - 1)
