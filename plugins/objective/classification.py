"""Name the class of a whole input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.objective import CrossEntropyConfig, Objective, Prepared


class ClassificationObjective(Objective):
    """Ask for the label of each text or image."""

    fields = frozenset({"labels"})
    per_token: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """Take the options of cross-entropy alone."""

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Split labels (B,) from the inputs beside them."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return Prepared(inputs, batch["labels"], batch.get("attention_mask"))
