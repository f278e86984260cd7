"""A model and its objective as one module, which is what gets compiled, distributed and differentiated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..core.objective import Objective, Prepared
from ..core.topology import Topology


class Step(nn.Module):
    """Compute the summed loss of a batch."""

    def __init__(self, model: Topology, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(
        self, inputs: Mapping[str, Tensor], targets: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (a scalar, nats summed over targets) and the objective's further sums by name."""
        hidden = self.model(**inputs, logits=False).hidden
        loss = self.objective.loss(hidden, self.model.head, Prepared(inputs, targets, mask))
        return loss.total, dict(loss.sums)


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
    )
