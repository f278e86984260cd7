"""Softmax attention over chosen blocks of tokens, the first and the last among them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ...core.attention import Declaration, Mechanism, is_exporting
from ...core.blocks import block_tokens, cut, drawn, gathered, listed
from ...core.component import Site
from ...core.context import Context
from ...core.heads import HeadsConfig
from ...core.position import in_each_row
from ...core.softmax import softmax_attention, softmax_reference
from ...core.state import Memories
from ...core.tokens import Tokens, visible


class BigBirdAttention(Mechanism):
    """Let blocks of tokens see the first block, the last, their neighbours, and random ones (Zaheer et al. 2020).

    The first and the last block see everything. The last is that of a row's last real token, so that what a row gives
    does not depend on how far it is padded. Drawn blocks follow from a seeded hash over the blocks of `max_seq_len`.
    """

    lowers: ClassVar[Mapping[str, str]] = {"onnx": "masked"}  # one Attention in place of its parts
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"two_sided", "documents", "rotate", "score", "compile"}),
        lacks={
            "causal": "all tokens see the last block of a sequence",
            "cross": "blocks compare positions of one sequence, and a memory's are those of another",
            "pairs": "its blocks follow the columns of one text",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 6, "block": 3, "n_random": 1},
        {"n_heads": 6, "block": 2, "n_random": 2, "random": "first"},
        {"n_heads": 6, "block": 3, "n_random": 1, "random": "first", "short": "blocks"},
        {"n_heads": 6, "block": 4, "n_random": 0},
    )
    chosen: Tensor
    table: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """block: tokens in a block. n_random: random blocks that a block sees besides. random: where they come from:
        `drawn` once by a hash of `seed`; or `first`, the first block anew each time, so that its tokens count 1 +
        n_random times, as published models have it once they are trained. short: what rows of at most 5 + 2 n_random
        blocks take: `full` attention, as published models, or their `blocks`.
        """

        block: int = 64
        n_random: int = 3
        random: Literal["drawn", "first"] = "drawn"
        short: Literal["full", "blocks"] = "full"
        seed: int = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            for name, least in {"block": 1, "n_random": 0}.items():
                if getattr(self, name) < least:
                    raise ValueError(f"{name}: {getattr(self, name)} is too few; at least {least}")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.blocks = -(-site.max_seq_len // config.block)
        self.short = (5 + 2 * config.n_random) * config.block if config.short == "full" else 0
        most = min(self.blocks, 4 + (config.n_random if config.random == "drawn" else 0))
        self.register_buffer("table", torch.empty(self.blocks, self.blocks, dtype=torch.bool), persistent=False)
        self.register_buffer("chosen", torch.empty(self.blocks, most, dtype=torch.int64), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Compute which block sees which, (N, N), and for each block the list of those, (N, most), ended by -1.

        The last block is left out: which one it is a row says.
        """
        if self.table.is_meta:
            return
        column = np.arange(self.blocks)
        table = (np.abs(column[:, None] - column) < 2) | (column == 0)
        if self.config.random == "drawn":
            for i, row in enumerate(table):
                row[drawn(self.config.seed, i, column[~row], self.config.n_random)] = True
        self.table.copy_(torch.from_numpy(table))
        self.chosen.copy_(torch.from_numpy(listed(table, self.chosen.shape[1])))

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return who may see whom; k: all tokens of the rows, whose number says which block is the last."""
        return self._visible(q, k, _ends(q, k))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix by gathering each block's chosen blocks: linear in T. Few tokens and documents take one mask."""
        tokens, length = context.tokens, q.shape[1]
        if context.weights is not None or is_exporting():
            return self.reference(q, k, v, context, state)
        if tokens.plain and length <= self.short:
            return softmax_attention(q, k, v, scale=self.scale, bias=context.score(tokens, None, q, k)), None
        if tokens.doc is not None or length <= max(self.short, self.config.block * (self.chosen.shape[1] + 1)):
            return self.masked(q, k, v, context, state)
        ends = tokens.once("ends", lambda: _ends(tokens, tokens).expand(tokens.rows, 1))
        last = ((ends - 1) // self.config.block).clamp(min=0)
        y = self._in_blocks(q, k, v, context, ends)
        whole = self._from_ends(q, k, v, context, last)
        at_last = torch.arange(y.shape[1], device=y.device) == last
        y = torch.where(at_last[:, :, None, None, None], whole[:, 1:], y)
        y = torch.cat([whole[:, :1], y[:, 1:]], dim=1).flatten(1, 2)[:, :length]
        return self._with_short(y, q, k, v, context, ends), None

    def masked(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute `forward` by torch's fused kernel with one dense mask, whatever the length."""
        tokens = context.tokens
        mask = context.once(("big_bird", self.config), lambda: self.visible(tokens, tokens))
        bias = self._biased(context, tokens, tokens, q, k, _ends(tokens, tokens))
        return softmax_attention(q, k, v, scale=self.scale, mask=mask, bias=bias), None

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute all scores, mask the blocks that are not seen, and take the softmax."""
        tokens = context.tokens
        bias = self._biased(context, tokens, tokens, q, k, _ends(tokens, tokens))
        y, weights = softmax_reference(q, k, v, self.visible(tokens, tokens), bias, self.scale)
        if context.weights is not None:
            context.weights.append(weights)
        return y, None

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        if tokens <= self.short:
            return "torch SDPA"
        block, most = self.config.block, self.chosen.shape[1] + 1
        return f"torch SDPA on {most} gathered blocks of {block}" if tokens > block * most else "torch SDPA, masked"

    # -- the rule -----------------------------------------------------------------------------------------------------

    def _visible(self, q: Tokens, k: Tokens, ends: Tensor) -> Tensor:
        """Return who may see whom, (B or 1, T, S), where ends (B or 1, T or 1) says how long their rows are."""
        rows, columns, last = self._places(q, k, ends)
        end = self.blocks - 1
        listed = self.table[rows.clamp(0, end), columns.clamp(0, end)] | (columns == last)
        return visible(q, k, causal=False) & (listed | self._whole(rows, last, ends))

    def _biased(self, context: Context, q: Tokens, k: Tokens, qs: Tensor, ks: Tensor, ends: Tensor) -> Tensor | None:
        """Return what is added to scores: by positions, and for tokens that count several times."""
        bias = context.score(q, k, qs, ks)
        if self.config.random == "drawn" or self.config.n_random == 0:
            return bias
        rows, columns, last = self._places(q, k, ends)
        again = (columns == 0) & ~self._whole(rows, last, ends)
        added = again.unsqueeze(1).to(qs.dtype) * math.log1p(self.config.n_random)
        return added if bias is None else in_each_row(bias, len(qs)) + in_each_row(added, len(qs))

    def _places(self, q: Tokens, k: Tokens, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the blocks of queries (B or 1, T, 1), of keys (B or 1, 1, S), and the last one (B or 1, T or 1, 1)."""
        block = self.config.block
        return (q.pos // block).unsqueeze(2), (k.pos // block).unsqueeze(1), ((ends - 1) // block).unsqueeze(2)

    def _whole(self, rows: Tensor, last: Tensor, ends: Tensor) -> Tensor:
        """Say which queries see everything, (B or 1, T, 1): those at both ends, and of short rows all."""
        return (rows == 0) | (rows == last) | (ends <= self.short).unsqueeze(2)

    # -- the fast path ------------------------------------------------------------------------------------------------

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, context: Context, ends: Tensor) -> Tensor:
        """Return what every block makes of those that it sees, (B, N, block, H, D)."""
        block, batch, tokens = self.config.block, q.shape[0], context.tokens
        chosen = tokens.once(("big_bird blocks", self.config), lambda: self._listed(q.shape[1], ends))
        q_tokens, k_tokens = tokens.once(("big_bird tokens", self.config), lambda: block_tokens(tokens, chosen, block))
        ends = ends.repeat_interleave(chosen.shape[1], 0)
        q, k, v = cut(q, block).flatten(0, 1), gathered(k, chosen, block), gathered(v, chosen, block)
        mask = context.once(("big_bird mask", self.config), lambda: self._visible(q_tokens, k_tokens, ends))
        bias = self._biased(context, q_tokens, k_tokens, q, k, ends)
        if mask.shape[0] != q.shape[0]:  # all rows stand at the same positions
            mask = mask.repeat(batch, 1, 1)
            bias = None if bias is None else in_each_row(bias, q.shape[0])
        y = softmax_attention(q, k, v, scale=self.scale, mask=mask, bias=bias)
        mixed: Tensor = y.unflatten(0, (batch, chosen.shape[1]))
        return mixed

    def _listed(self, length: int, ends: Tensor) -> Tensor:
        """Return the blocks that each of a row's blocks sees, (B or 1, N, most + 1): its own last one comes last."""
        blocks = -(-length // self.config.block)
        chosen = self.chosen[:blocks]
        chosen = chosen.masked_fill(chosen >= blocks, -1).expand(len(ends), -1, -1)
        last = ((ends - 1) // self.config.block).clamp(min=0).unsqueeze(2).expand(-1, blocks, -1)
        return torch.cat([chosen, last.masked_fill((chosen == last).any(-1, keepdim=True), -1)], dim=-1)

    def _from_ends(self, q: Tensor, k: Tensor, v: Tensor, context: Context, last: Tensor) -> Tensor:
        """Let the first block and the last see everything: (B, 2, block, H, D)."""
        tokens, block = context.tokens, self.config.block
        chosen = torch.stack([torch.zeros_like(last), last], dim=-1)
        q_tokens = tokens.map(lambda t: gathered(t.expand(len(last), -1), chosen, block))
        q = gathered(q, chosen, block)
        mask = None if tokens.valid is None else visible(q_tokens, tokens, causal=False)
        y = softmax_attention(q, k, v, scale=self.scale, mask=mask, bias=context.score(q_tokens, tokens, q, k))
        mixed: Tensor = y.unflatten(1, (2, block))
        return mixed

    def _with_short(self, y: Tensor, q: Tensor, k: Tensor, v: Tensor, context: Context, ends: Tensor) -> Tensor:
        """Return y (B, T, H, D) with what rows that are short, beside longer ones, make of all their tokens."""
        if context.tokens.valid is None or self.short == 0:
            return y
        first = slice(None, self.short)
        tokens, q, k, v = context.tokens[first], q[:, first], k[:, first], v[:, first]
        mask = visible(tokens, tokens, causal=False)
        few = softmax_attention(q, k, v, scale=self.scale, mask=mask, bias=context.score(tokens, tokens, q, k))
        few = torch.where((ends <= self.short)[:, :, None, None], few, y[:, first])
        return torch.cat([few, y[:, self.short :]], dim=1)


def _ends(q: Tokens, k: Tokens) -> Tensor:
    """Return how many real tokens the document of each query has, (B or 1, T or 1) int64; k: all tokens of the rows."""
    if q.doc is not None and k.doc is not None:
        return visible(q, k, causal=False).sum(2)
    real = torch.ones_like(k.pos[:1], dtype=torch.bool) if k.valid is None else k.valid
    return real.sum(1, keepdim=True)
