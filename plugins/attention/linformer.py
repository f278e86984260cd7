"""Softmax attention to a few learned sums of a text's keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.attention import Declaration, Mechanism
from ...core.component import Site
from ...core.context import Context
from ...core.heads import HeadsConfig
from ...core.softmax import softmax_attention, softmax_reference
from ...core.state import Memories


class LinformerAttention(Mechanism):
    """Let every token see `rank` sums of all keys, each place at a weight that is learned (Wang et al. 2020).

    All heads share the weights. They start normal at a variance of 1 / max_seq_len, so that the sums of a whole text
    are of the scale of one key.
    """

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"two_sided", "compile"}),
        ignores=frozenset({"rotate"}),
        lacks={
            "causal": "every sum that a token sees is of the whole text, what comes later included",
            "cross": "it learns a weight for each place of its own text, and a memory's places are those of another",
            "documents": "it sums the keys of a row before any query meets them, whichever document they are of",
            "score": "a bias is for a pair of tokens, and its sums stand for no token",
            "pairs": "it sums keys before any query meets them, so that none can be hidden from one query alone",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 6, "rank": 7},
        {"n_heads": 6, "n_kv_heads": 3, "rank": 5, "shared": True},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """rank: how many sums there are. shared: whether values are summed with the weights of keys."""

        rank: int = 64
        shared: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.rank < 1:
                raise ValueError(f"rank: {self.rank} sums leave nothing to see; at least 1")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        sets = 1 if config.shared else 2
        self.weight = nn.Parameter(torch.empty(sets, config.rank, site.max_seq_len))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of all places."""
        nn.init.normal_(self.weight, std=self.site.max_seq_len**-0.5)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Sum keys and values, and mix the sums by torch's fused kernel: linear in T."""
        (by_key, k), (by_value, v) = self._weighed(k, v, context)
        k, v = ((weight @ x.flatten(2)).unflatten(-1, x.shape[2:]) for weight, x in ((by_key, k), (by_value, v)))
        return softmax_attention(q, k, v, scale=self.scale), None

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute the sums, all scores of theirs, and take the softmax."""
        (by_key, k), (by_value, v) = self._weighed(k, v, context)
        k, v = torch.einsum("rt,btkd->brkd", by_key, k), torch.einsum("rt,btkd->brkd", by_value, v)
        return softmax_reference(q, k, v, None, None, self.scale)[0], None

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        return f"torch SDPA to {self.config.rank} sums"

    def _weighed(self, k: Tensor, v: Tensor, context: Context) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the weights (rank, T) of the places that there are, beside keys, and beside values; 0 at padding.

        What stands beyond the last place is padding, and no place of its own is asked for.
        """
        valid = context.tokens.valid
        if valid is not None:
            k, v = (x.masked_fill(~valid[:, :, None, None], 0.0) for x in (k, v))
        place = torch.arange(k.shape[1], device=k.device).clamp(max=self.site.max_seq_len - 1)
        weight = self.weight.index_select(2, place)
        return (weight[0], k), (weight[-1], v)
