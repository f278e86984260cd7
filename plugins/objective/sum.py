"""Ask several heads at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from ...core.component import Part
from ...core.objective import Asked, Objective, Prepared
from ...core.topology import Topology
from ...core.vocabulary import Vocabulary


class SumObjective(Objective):
    """Ask each of several heads its own objective, of one pass: the loss is the sum of their means.

    The parts prepare a batch one after the other, each what the one before shows: {next: next_sentence, words:
    masked_lm} pairs texts and hides tokens of the pairs (Devlin et al. 2019).
    """

    fields = frozenset({"input_ids"})
    derives = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """parts: name of a head -> the objective that asks it, in the order that they prepare a batch.

        weights: what a head's mean loss counts in the sum, by its name; 1 for those that are left out.
        """

        parts: Mapping[str, Annotated[Part, "objective"]]
        weights: Mapping[str, float] = field(default_factory=dict)

        def __post_init__(self) -> None:
            if not self.parts:
                raise ValueError("parts: names no head; at least one")
            if odd := sorted(self.weights.keys() - self.parts.keys()):
                raise ValueError(f"weights: '{odd[0]}' is none of the parts")
            for place, (name, part) in enumerate(self.parts.items()):
                if part.cls.heads(part.config):
                    raise ValueError(f"parts: '{part.name}' asks several heads itself, and can't be asked of '{name}'")
                if part.cls.permutes and len(self.parts) > 1:
                    raise ValueError(f"parts: '{part.name}' gives hidden states of what it asks for: ask it alone")
                if place and (part.cls.asks_next or part.cls.lookahead or part.cls.sequences > 1):
                    raise ValueError(f"parts: '{part.name}' makes rows of its own out of the data: let it come first")

    config: Config

    def __init__(self, config: Config, vocabulary: Vocabulary | None) -> None:
        super().__init__(config, vocabulary)
        self.parts: dict[str, Objective] = {name: part.build(vocabulary) for name, part in config.parts.items()}
        first = next(iter(self.parts.values()))
        self.fields = first.fields
        self.lookahead = first.lookahead
        self.extra_ids = max(part.extra_ids for part in self.parts.values())
        self.weights = tuple(config.weights.get(name, 1.0) for name in self.parts)

    @classmethod
    def heads(cls, config: Any) -> Mapping[str, type[Objective]]:
        """Name the heads of the parts."""
        return {name: part.cls for name, part in config.parts.items()}

    def measured(self) -> Objective:
        """Return the sum of what the parts measure."""
        other = copy.copy(self)
        other.parts = {name: part.measured() for name, part in self.parts.items()}
        return other

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Let each part prepare what the one before shows, the first a raw batch; targets (B, T) or (B,) for each."""
        shown, targets, mask = dict(batch), dict[str, Tensor](), None
        for place, (name, part) in enumerate(self.parts.items()):
            made = part.prepare(shown, generator)
            shown = {**(shown if place else {}), **made.inputs}
            targets[name], mask = made.targets, made.mask
        first, *others = targets
        return Prepared(shown, targets[first], mask, {name: targets[name] for name in others})

    def asked(self, model: Topology, prepared: Prepared) -> Mapping[str, Asked]:
        """Run the model once, and ask each head of the same hidden states."""
        hidden = model(**prepared.inputs, logits=False).hidden
        targets = [prepared.targets, *prepared.others.values()]
        return {
            name: Asked(part, hidden, Prepared(prepared.inputs, each, prepared.mask))
            for (name, part), each in zip(self.parts.items(), targets, strict=True)
        }
