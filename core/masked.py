"""Softmax attention whose receptive field is a rule: what follows from the rule alone is the same for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from .attention import Mechanism
from .context import Context
from .softmax import softmax_attention, softmax_reference
from .state import Memories
from .tokens import Tokens


class MaskedMechanism(Mechanism, ABC):
    """Mix what `visible` shows, of new tokens and of those that a state holds.

    A child says what it remembers, and brings a `forward` that takes less than one dense mask. `cap`: how far scaled
    scores may be from 0; None for any distance.
    """

    cap: float | None = None

    @abstractmethod
    def _extend(
        self, k: Tensor, v: Tensor, context: Context, state: Memories | None
    ) -> tuple[Tensor, Tensor, Tokens, Memories | None]:
        """Put what is remembered before k and v (B, T, K, D), say which tokens stand there, and remember the new."""

    def masked(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute `forward` by torch's fused kernel with one dense mask, whatever the length.

        q (B, T, H, D); k, v (B, T, K, D). Returns (B, T, H, D) and the state after.
        """
        k, v, tokens, state = self._extend(k, v, context, state)
        key = ("masked", type(self), self.config, tokens is context.tokens)
        mask = context.once(key, lambda: self.visible(context.tokens, tokens))
        bias = context.score(context.tokens, tokens, q, k)
        return softmax_attention(q, k, v, scale=self.scale, mask=mask, bias=bias, cap=self.cap), state

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute all scores, mask what is not visible, and take the softmax."""
        k, v, tokens, state = self._extend(k, v, context, state)
        bias = context.score(context.tokens, tokens, q, k)
        y, weights = softmax_reference(q, k, v, self.visible(context.tokens, tokens), bias, self.scale, self.cap)
        if context.weights is not None:
            context.weights.append(weights)
        return y, state
