"""Write tokens with anything that takes tokens and a state and gives logits; numpy is all it needs."""

from .loop import Generation, Piece, Stepper, generate, stream
from .sampling import Sampling

__all__ = ["Generation", "Piece", "Sampling", "Stepper", "generate", "stream"]
