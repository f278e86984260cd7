"""Write tokens with anything that takes tokens and a state and gives logits; numpy is all it needs."""

from .loop import Generation, Stepper, generate
from .sampling import Sampling

__all__ = ["Generation", "Sampling", "Stepper", "generate"]
