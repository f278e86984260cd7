"""The names that activations have in a spec, apart from the functions: whoever reads a spec needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

Activation = Literal[
    "relu", "gelu", "gelu_tanh", "gelu_10", "quick_gelu", "silu", "relu2", "relu6", "leaky_relu", "hardswish", "mish",
    "tanh", "sigmoid", "laplace", "sqrtsoftplus", "linear",
]  # fmt: skip

NAMES: tuple[Activation, ...] = get_args(Activation)
