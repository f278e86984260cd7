"""The activations that a spec may name: functions of one number, without weights of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation_names import Activation


def activate(name: Activation, x: Tensor) -> Tensor:
    """Return the named activation of x, elementwise."""
    return ACTIVATIONS[name](x)


def _gelu_10(x: Tensor) -> Tensor:
    """Return gelu between -10 and 10, a range that eight bits can hold (Wu et al. 2020)."""
    return F.gelu(x).clamp(-10.0, 10.0)


def _quick_gelu(x: Tensor) -> Tensor:
    """Return a gelu by a logistic (Hendrycks and Gimpel 2016)."""
    return x * torch.sigmoid(1.702 * x)


def _relu2(x: Tensor) -> Tensor:
    """Return relu squared (So et al. 2021)."""
    return F.relu(x).square()


def _laplace(x: Tensor) -> Tensor:
    """Return a normal distribution's share below x, near relu squared but bounded (Ma et al. 2022, "Mega")."""
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def _sqrtsoftplus(x: Tensor) -> Tensor:
    """Return (ln(1 + e^x))^1/2, whose slope far below 0 is not 0 over 0: there it is e^(x/2) to the last digit."""
    low = -15.0 if x.dtype == torch.float16 else -40.0
    return torch.where(x < low, torch.exp(x.clamp(max=low) / 2), F.softplus(x.clamp(min=low)).sqrt())


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_10": _gelu_10,
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
    "relu2": _relu2,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "laplace": _laplace,
    "sqrtsoftplus": _sqrtsoftplus,
    "linear": lambda x: x,
}
"""Each of them by its name."""
