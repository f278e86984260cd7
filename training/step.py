"""A model and its objective as one module, which is what gets compiled, distributed and differentiated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from ..core.head import Head
from ..core.objective import Objective, Prepared
from ..core.topology import Topology

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Step(nn.Module):
    """Compute the summed losses of a batch, one for each head that is asked."""

    def __init__(self, model: Topology, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self._measured = objective.measured()

    def forward(
        self, inputs: Mapping[str, Tensor], targets: Tensor, mask: Tensor | None, others: Mapping[str, Tensor] = NOTHING
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses (heads,), nats summed over each head's targets, and the objective's further sums by name.

        In evaluation the losses are those that tell how good a model is. Where the objective asks several heads, a
        sum's name begins with that of its head: `words.correct`.
        """
        objective = self.objective if self.training else self._measured
        asked = objective.asked(self.model, Prepared(inputs, targets, mask, others))
        totals, sums = [], dict[str, Tensor]()
        for name, each in asked.items():
            head = cast(Head, self.model.heads[name])
            loss = each.objective.loss(each.hidden, head, each.prepared)
            totals.append(loss.total)
            sums |= {key if len(asked) == 1 else f"{name}.{key}": value for key, value in loss.sums.items()}
        return torch.stack(totals), sums


def moved(prepared: Prepared, device: torch.device) -> Prepared:
    """Return a batch on a device, on its way while the caller goes on where the device allows."""
    if device.type == "cpu":
        return prepared

    def move(tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(device, non_blocking=True)

    return dataclasses.replace(
        prepared,
        inputs={name: move(tensor) for name, tensor in prepared.inputs.items()},
        targets=move(prepared.targets),
        mask=None if prepared.mask is None else move(prepared.mask),
        others={name: move(tensor) for name, tensor in prepared.others.items()},
    )
