"""Products of matrices in 8 bits, through torchao, on devices that have them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import nn

from ..core.linear import Fused, Linear

CAPABLE = (8, 9)
"""The first compute capability whose tensor cores multiply 8-bit floats."""
EVEN = 16
"""What both sizes of a matrix are multiples of."""


def missing(device: torch.device) -> str | None:
    """Say why a device can't train in 8 bits, or None when it can."""
    if device.type != "cuda":
        return f"float8 needs a CUDA device of compute capability 8.9, and this training is on {device.type}: use bf16"
    if (there := torch.cuda.get_device_capability(device)) < CAPABLE:
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {there[0]}.{there[1]}, and float8 needs 8.9"
        )
    if find_spec("torchao") is None:
        return "float8 needs torchao: pip install torchao, or use bf16"
    return None


def multiply_in_float8(model: nn.Module) -> int:
    """Have projections compute in 8 bits, scaled by the largest entry of each tensor, and return how many do.

    Weights stay as they are. Left out: maps with sizes that are no multiples of 16, biases on some parts alone, heads.
    """
    convert = import_module("torchao.float8").convert_to_float8_training
    done = 0
    for module in model.modules():
        if not fits(module):
            continue
        assert isinstance(module, Linear)
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight, plain.bias = module.weight, module.bias
        # By its forward alone: what else the map can do, and the names of its weights, stay.
        twin = convert(nn.Sequential(plain))[0]
        object.__setattr__(module, "forward", twin.forward)
        done += 1
    return done


def fits(module: nn.Module) -> bool:
    """Say whether a module is a projection that can compute in 8 bits."""
    if type(module) not in (Linear, Fused) or getattr(module, "partly", False):  # a router is a Linear of its own kind
        return False
    assert isinstance(module, Linear)
    return module.in_features % EVEN == 0 and module.out_features % EVEN == 0
