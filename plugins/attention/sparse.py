"""Softmax attention over chosen blocks of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core import flex, sliced
from ...core.attention import Declaration, is_exporting
from ...core.blocks import block_tokens, cut, drawn, gathered, listed
from ...core.component import Site
from ...core.context import Context
from ...core.heads import HeadsConfig
from ...core.masked import MaskedMechanism
from ...core.position import in_each_row
from ...core.ring import head_write, ring_tokens, ring_write
from ...core.softmax import softmax_attention
from ...core.state import PAST, Declared, Memories, Remembered
from ...core.tokens import Tokens, join, visible

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

FEWEST = 16
"""Tokens of a block from which on CPU a call for each block costs less than one call for all, gathered."""


class SparseAttention(MaskedMechanism):
    """Let blocks of tokens see a few blocks: first ones, near ones, every nth, and random ones (Zaheer et al. 2020).

    Where both sides are seen, the first blocks also see everything. The strided form is Child et al. (2019), by blocks.
    Random blocks are ranked by a seeded hash over the blocks of `max_seq_len`, so that they are the same at every
    length, on every device and in every export.
    """

    lowers: ClassVar[Mapping[str, str]] = {"onnx": "masked"}  # one Attention in place of its parts
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "rotate", "score", "compile"}),
        lacks={
            "cross": "blocks compare positions of one sequence, and a memory's are those of another",
            "pairs": "its blocks follow the columns of one text",
        },
    )
    chosen: Tensor
    table: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """block: tokens in a block. n_global: first blocks, seen by all. n_window: near blocks on a side, its own
        included. n_random: random blocks besides. stride: every stride-th block, counted back from its own; 0 for none.
        seed: of the random blocks.
        """

        block: int = 64
        n_global: int = 1
        n_window: int = 3
        n_random: int = 0
        stride: int = 0
        seed: int = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            for name, least in {"block": 1, "n_global": 0, "n_window": 1, "n_random": 0, "stride": 0}.items():
                if getattr(self, name) < least:
                    raise ValueError(f"{name}: {getattr(self, name)} is too few; at least {least}")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.blocks = -(-site.max_seq_len // config.block)
        near = config.n_window if site.causal else 2 * config.n_window - 1
        strided = -(-self.blocks // config.stride) if config.stride else 0
        most = min(self.blocks, config.n_global + near + strided + config.n_random)
        self.register_buffer("table", torch.empty(self.blocks, self.blocks, dtype=torch.bool), persistent=False)
        self.register_buffer("chosen", torch.empty(self.blocks, most, dtype=torch.int64), persistent=False)
        self.unfit = flex.unfit(config.block, self.head_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Compute which block sees which, (N, N), and for each block the list of those, (N, most), ended by -1."""
        if self.table.is_meta:
            return
        table = self._pattern()
        self.chosen.copy_(torch.from_numpy(listed(table, self.chosen.shape[1])))
        if not self.site.causal:
            table[: self.config.n_global] = True  # the first blocks see everything; `chosen` leaves that out
        self.table.copy_(torch.from_numpy(table))

    def _pattern(self) -> NDArray[np.bool_]:
        config = self.config
        table = np.zeros((self.blocks, self.blocks), dtype=bool)
        column = np.arange(self.blocks)
        for i, row in enumerate(table):
            back = i - column
            row |= (column < config.n_global) | (np.abs(back) < config.n_window)
            if config.stride:
                row |= back % config.stride == 0
            reachable = column <= i if self.site.causal else np.ones_like(row)
            row &= reachable
            row[drawn(config.seed, i, column[~row & reachable], config.n_random)] = True
        return table

    @property
    def bounded(self) -> bool:
        """Say whether the past that is ever seen again is bounded: first and near blocks alone."""
        return self.config.n_random == 0 and self.config.stride == 0

    def declared(self) -> Declared:
        """Keep every key and value; with first and near blocks alone, a head of the first and a ring of the near."""
        config = self.config
        tail = (self.n_kv_heads, self.head_dim)
        if not self.bounded:
            entry = Remembered(("batch", PAST, *tail), "append")
            return {"k": entry, "v": entry}
        ring = Remembered(("batch", config.n_window * config.block, *tail), "ring")
        if config.n_global == 0:
            return {"k": ring, "v": ring}
        head = Remembered(("batch", config.n_global * config.block, *tail), "fixed")
        return {"k": ring, "v": ring, "head_k": head, "head_v": head}

    def growth(self) -> tuple[float, float]:
        """Return the exponents of time and memory: every nth block of all is a share of all."""
        return (2.0, 2.0) if self.config.stride else super().growth()

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return who may see whom: the model's rule, where the token's block sees the other's."""
        block, last = self.config.block, self.blocks - 1
        rows = (q.pos // block).clamp(0, last).unsqueeze(2)
        columns = (k.pos // block).clamp(0, last).unsqueeze(1)
        return visible(q, k, causal=self.site.causal) & self.table[rows, columns]

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix by gathering each block's chosen blocks: linear in T. Few tokens, documents, and steps take one mask.

        On CUDA, flex attention's kernel skips the blocks that are not chosen; on CPU, slices of the keys are enough.
        """
        config, length = self.config, q.shape[1]
        if context.weights is not None or is_exporting():
            return self.reference(q, k, v, context, state)
        if state is None and not self.unfit and flex.takes(q, context):
            shown = context.tokens.once(("sparse blocks, listed", config), lambda: self._listed(length))
            return flex.block_attention(q, k, v, shown, scale=self.scale), None
        if state is None and length > config.block >= FEWEST and sliced.takes(q, k, v, context):
            slices = context.tokens.once(("sparse slices", config), lambda: self._slices(length, q.device))
            return sliced.sliced_attention(q, k, v, slices, scale=self.scale), None
        if state is None and context.tokens.doc is None and length > config.block * self.chosen.shape[1]:
            y = self._in_blocks(q, k, v, context)
            first = 0 if self.site.causal else min(config.n_global * config.block, length)
            if first:
                y = torch.cat([self._from_first(q[:, :first], k, v, context), y[:, first:]], dim=1)
            return y, None
        return self.masked(q, k, v, context, state)

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        block, most = self.config.block, self.chosen.shape[1]
        taken = f"torch SDPA on {most} gathered blocks of {block}" if tokens > block * most else "torch SDPA, masked"
        if tokens <= block:
            return taken
        if why := f"slices cost a call each, from blocks of {FEWEST} on" if block < FEWEST else sliced.unfit():
            return f"{taken}: {why}"
        return f"torch SDPA in slices of {block}; where scores take a bias, {taken}"

    def on_cuda(self) -> str:
        """Name flex attention, or say why it can't be taken."""
        return f"the same: {self.unfit}" if self.unfit else "flex attention, the same blocks"

    def _slices(self, length: int, device: torch.device) -> list[sliced.Slice]:
        block = self.config.block
        blocks = -(-length // block)
        chosen = listed(self._pattern(), self.chosen.shape[1]) if self.chosen.is_meta else self.chosen.numpy()
        rows = chosen[:blocks].tolist()
        if not self.site.causal:
            first = min(self.config.n_global, blocks)
            rows[:first] = [list(range(blocks))] * first
        return sliced.block_slices(rows, block, length, causal=self.site.causal, device=device)

    def _listed(self, length: int) -> BlockMask:
        block = self.config.block
        blocks = -(-length // block)
        return flex.block_mask(self.table[:blocks, :blocks], block, length, causal=self.site.causal)

    def _extend(
        self, k: Tensor, v: Tensor, context: Context, state: Memories | None
    ) -> tuple[Tensor, Tensor, Tokens, Memories | None]:
        """Put what is remembered before k and v, and say which tokens stand there."""
        if state is None:
            return k, v, context.tokens, None
        if not self.bounded:
            k, v = context.append(state["k"], k), context.append(state["v"], v)
            return k, v, context.keys, {"k": k, "v": v}
        assert context.seen is not None
        seen, length, first = context.seen, context.length, self.config.n_global * self.config.block
        ring = ring_tokens(seen, self.config.n_window * self.config.block)
        # What stands in the head as well as in the ring counts once.
        tokens = join(Tokens(ring.pos, ring.pos >= first), context.tokens)
        after = {"k": ring_write(state["k"], k, seen, length), "v": ring_write(state["v"], v, seen, length)}
        k, v = torch.cat([state["k"], k], dim=1), torch.cat([state["v"], v], dim=1)
        if first:
            slot = torch.arange(first, device=seen.device).unsqueeze(0)
            tokens = join(Tokens(slot, slot < seen.unsqueeze(1)), tokens)
            k, v = torch.cat([state["head_k"], k], dim=1), torch.cat([state["head_v"], v], dim=1)
            new = slice(k.shape[1] - context.tokens.pos.shape[1], None)
            after["head_k"] = head_write(state["head_k"], k[:, new], seen, length)
            after["head_v"] = head_write(state["head_v"], v[:, new], seen, length)
        return k, v, tokens, after

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        block, (batch, length) = self.config.block, q.shape[:2]
        blocks = -(-length // block)
        chosen = self.chosen[:blocks]
        chosen = chosen.masked_fill(chosen >= blocks, -1).unsqueeze(0)
        q_tokens, k_tokens = context.tokens.once(
            ("sparse blocks", self.config), lambda: block_tokens(context.tokens, chosen, block)
        )
        q, k, v = cut(q, block).flatten(0, 1), gathered(k, chosen, block), gathered(v, chosen, block)
        mask = context.once(("sparse mask", self.config), lambda: self.visible(q_tokens, k_tokens))
        bias = context.score(q_tokens, k_tokens, q, k)
        if mask.shape[0] != q.shape[0]:  # all rows stand at the same positions
            mask = mask.repeat(batch, 1, 1)
            bias = None if bias is None else in_each_row(bias, q.shape[0])
        y = softmax_attention(q, k, v, scale=self.scale, mask=mask, bias=bias)
        mixed: Tensor = y.unflatten(0, (batch, blocks))
        return mixed.flatten(1, 2)[:, :length]

    def _from_first(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Let the tokens of the first blocks see everything."""
        tokens = context.tokens[: q.shape[1]]
        mask = None if context.tokens.valid is None else self.visible(tokens, context.tokens)
        return softmax_attention(q, k, v, scale=self.scale, mask=mask, bias=context.score(tokens, context.tokens, q, k))
