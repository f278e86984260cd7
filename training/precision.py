"""The number format of the forward and backward pass, and the scaling of losses that half precision needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from . import float8

SMALLEST_SCALE = 1e-4
"""A loss scale below this has been halved about thirty times running: the gradients will never be finite."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "float8": torch.bfloat16}


class Precision:
    """Run passes in one precision on one device.

    Weights stay fp32; fp16 scales losses, so that small gradients do not vanish (Micikevicius et al. 2018).
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.dtype = DTYPES[name]
        self.caches = True  # whether a weight that was narrowed is kept until the pass ends
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    @property
    def scales(self) -> bool:
        """Whether losses are scaled, so that gradients may overflow now and then."""
        return self.scaler.is_enabled()

    def convert(self, model: nn.Module) -> None:
        """Have a model's projections multiply in 8 bits where the precision says so."""
        if self.name == "float8":
            float8.multiply_in_float8(model)

    def autocast(self) -> torch.autocast:
        """Return the context that a forward pass runs in."""
        narrows = self.dtype is not torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=narrows, cache_enabled=self.caches)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled where the precision asks for it."""
        self.scaler.scale(loss).backward()

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Take an optimizer step with unscaled gradients; fp16 skips it when they overflowed, and lowers the scale."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def check_scale(self, step: int) -> None:
        """Raise TrainingError when the scale has collapsed."""
        scale = self.scaler.get_scale()
        if scale < SMALLEST_SCALE:
            raise TrainingError(
                f"step {step}: the gradients overflow fp16 even with the loss scaled by {scale:.1e}: train in bf16 or "
                "fp32, or lower train.lr"
            )

    def state(self) -> dict[str, Any]:
        """Return what must be kept to go on exactly; empty without scaling."""
        return dict(self.scaler.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        if state:
            self.scaler.load_state_dict(dict(state))


def check_precision(name: str, device: torch.device) -> str | None:
    """Say why a device can't train in a precision, or None when it can."""
    if name == "float8":
        return float8.missing(device)
    if device.type == "cuda" and name == "bf16" and not torch.cuda.is_bf16_supported():
        return f"{torch.cuda.get_device_name(device)} has no bf16: use fp16 or fp32"
    return None
