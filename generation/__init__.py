"""Write tokens with anything that takes tokens and a state and gives logits; numpy is all it needs."""

from .draft import Draft
from .loop import generate, stream
from .reader import Scorer, Stepper
from .rows import Generation, Piece
from .sampling import Sampling

__all__ = ["Draft", "Generation", "Piece", "Sampling", "Scorer", "Stepper", "generate", "stream"]
