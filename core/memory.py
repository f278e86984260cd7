"""What cross attention reads: the hidden states of another stack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .context import Context
from .tokens import Tokens


@dataclass(frozen=True, eq=False)
class Memory:
    """Hold hidden states (B, M, C), and which of them are real: `mask` (B, M), 1 at real ones; None where all are."""

    hidden: Tensor
    mask: Tensor | None = None

    def read_by(self, tokens: Tokens, weights: list[Tensor] | None = None) -> Context:
        """Return the context of cross attention over it: what stands at padding is 0, NaN included."""
        hidden, mask = self.hidden, self.mask
        if mask is not None:
            hidden = hidden.masked_fill(~mask.bool().unsqueeze(-1), 0.0)
        return _over(tokens, hidden, _columns(hidden, mask), weights)

    def primes(self) -> Context:
        """Return the context in which layers compute what they keep of it, before there are tokens that read."""
        return self.read_by(_columns(self.hidden, self.mask))

    def kept(self) -> Tensor:
        """Return the mask that a state keeps, (B, M) int64."""
        if self.mask is None:
            return torch.ones(self.hidden.shape[:2], dtype=torch.int64, device=self.hidden.device)
        return self.mask.long()


def primed(kept: Tensor, tokens: Tokens, weights: list[Tensor] | None) -> Context:
    """Return the context of cross attention over a memory of which a state keeps all: `kept` (B, M) is its mask."""
    return _over(tokens, None, _columns(kept, kept), weights)


def _over(tokens: Tokens, hidden: Tensor | None, columns: Tokens, weights: list[Tensor] | None) -> Context:
    return Context(tokens, causal=False, memory=hidden, memory_tokens=columns, weights=weights)


def _columns(memory: Tensor, mask: Tensor | None = None) -> Tokens:
    pos = torch.arange(memory.shape[1], device=memory.device).unsqueeze(0)
    return Tokens(pos, None if mask is None else mask.bool())
