"""Queries, keys and values as the projections give them, for mechanisms that leave the rest to one operator."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .context import Context


@dataclass(frozen=True, eq=False)
class Projected:
    """Hold q, k and v of the new tokens before anything is done to them but their norms.

    `parts`: q, k and v (B, T, heads, D), or one tensor (B, T, H + 2K, D) of all side by side. `shares`: the heads of
    each, H, K and K. `turning`: whether q and k are still to be turned by positions that rotate.
    """

    parts: tuple[Tensor, ...]
    shares: tuple[int, int, int]
    turning: bool

    def apart(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (B, T, H, D), k and v (B, T, K, D)."""
        q, k, v = self.parts[0].split_with_sizes(self.shares, -2) if len(self.parts) == 1 else self.parts
        return q, k, v

    def turned(self, context: Context) -> Projected:
        """Return the same with q and k turned by the positions that rotate."""
        if not self.turning or not context.rotates:
            return self
        if len(self.parts) == 1:  # one rotation turns queries and keys that stand side by side
            qk, v = self.parts[0].split_with_sizes((self.shares[0] + self.shares[1], self.shares[2]), -2)
            q, k = context.rotate(qk).split_with_sizes(self.shares[:2], -2)
        else:
            q, k, v = self.parts
            q, k = context.rotate(q), context.rotate(k)
        return Projected((q, k, v), self.shares, turning=False)
