"""Attention to blocks of keys that each query chooses for itself: for each block at once all queries that chose it."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import cut
from .linear import at_least_fp32, exactly


def selected_attention(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, *, block: int, scale: float) -> Tensor:
    """Mix the values of the blocks that the queries chose, of columns up to their own.

    q (B, T, H, D); k, v (B, T, K, D); chosen (B, T, K, N) int64: blocks of `block` columns, shared by the heads of a
    group, none of them later than the query's own, which is always among them; -1 for none. Returns (B, T, H, D).

    No keys are copied: it is queries that are gathered, those of one block side by side, and what they make of it is
    added up by the maxima of their scores, in fp32 at least.
    """
    (batch, length), groups, dtype = q.shape[:2], q.shape[2] // k.shape[2], v.dtype
    with exactly(q):
        rows = at_least_fp32(q).unflatten(2, (-1, groups)).transpose(1, 2).flatten(0, 1) * scale  # (R, T, G, D)
        keys, values = (cut(at_least_fp32(t), block).permute(0, 3, 1, 2, 4).flatten(0, 1) for t in (k, v))
        own = _own(rows, keys, block)
        pairs, counts = _pairs(chosen, keys.shape[1], block)
        asking = rows.flatten(0, 1).index_select(0, pairs)  # (P, G, D)
        blocks = [(i, c) for i, c in enumerate(counts) if c]
        parts = asking.flatten(0, 1).split([groups * c for _, c in blocks])
        by_block, of_block = keys.flatten(0, 1).unbind(0), values.flatten(0, 1).unbind(0)
        scores = [part @ by_block[i].mT for part, (i, _) in zip(parts, blocks, strict=True)]
        other = (torch.cat(scores) if scores else own.new_zeros(0, block)).unflatten(0, (-1, groups))  # (P, G, block)
        most = own.detach().amax(-1).flatten(0, 1)  # (R * T, G)
        index = pairs.unsqueeze(-1).expand(-1, groups)
        most = most.scatter_reduce(0, index, other.detach().amax(-1), "amax")
        own = torch.exp(own - most.unflatten(0, own.shape[:2]).unsqueeze(-1))
        other = torch.exp(other - most.index_select(0, pairs).unsqueeze(-1))
        mixed = [
            part @ of_block[i]
            for part, (i, _) in zip(other.flatten(0, 1).split([groups * c for _, c in blocks]), blocks, strict=True)
        ]
        total = own.sum(-1).flatten(0, 1).index_add(0, pairs, other.sum(-1))
        y = _mixed(own, values).flatten(0, 1)
        if mixed:
            y = y.index_add(0, pairs, torch.cat(mixed).unflatten(0, (-1, groups)))
        y = (y / total.unsqueeze(-1)).unflatten(0, (batch, k.shape[2], length))  # (B, K, T, G, D)
        mixed_by_head: Tensor = y.transpose(1, 2).flatten(2, 3).to(dtype)
        return mixed_by_head


def _own(rows: Tensor, keys: Tensor, block: int) -> Tensor:
    """Return the scores of queries (R, T, G, D) in their own blocks, (R, T, G, block), hidden where keys are later."""
    asked = cut(rows, block).flatten(2, 3)  # (R, N, block * G, D)
    scores = (asked @ keys.mT).unflatten(2, (block, -1))
    later = torch.ones(block, block, dtype=torch.bool, device=rows.device).triu(1).unsqueeze(1)
    found: Tensor = scores.masked_fill(later, torch.finfo(scores.dtype).min).flatten(1, 2)
    return found[:, : rows.shape[1]]


def _mixed(weights: Tensor, values: Tensor) -> Tensor:
    """Return what weights (R, T, G, block) mix of the values of their own blocks (R, N, block, D): (R, T, G, D)."""
    block = values.shape[2]
    mixed: Tensor = (cut(weights, block).flatten(2, 3) @ values).unflatten(2, (block, -1)).flatten(1, 2)
    return mixed[:, : weights.shape[1]]


def _pairs(chosen: Tensor, blocks: int, block: int) -> tuple[Tensor, list[int]]:
    """Return the rows of queries, r * T + t, that chose another block than their own, block by block, and how many.

    On the meta device, where none are known, each query chose as many as it may, and all blocks are chosen as often.
    """
    length = chosen.shape[1]
    own = torch.arange(length, device=chosen.device) // block
    if chosen.is_meta:
        rows, most = chosen.shape[0] * chosen.shape[2], chosen.shape[3] - 1
        pairs = rows * sum(min(column // block, most) for column in range(length))
        share, rest = divmod(pairs, rows * blocks)
        return own.new_empty(pairs), [share + (i < rest) for i in range(rows * blocks)]
    chosen = chosen.transpose(1, 2).flatten(0, 1)  # (R, T, N)
    other = chosen.masked_fill((chosen < 0) | (chosen == own.unsqueeze(-1)), blocks)
    chose = torch.zeros(*chosen.shape[:2], blocks + 1, dtype=torch.bool, device=chosen.device)
    chose = chose.scatter(2, other, True)[..., :blocks].transpose(1, 2)  # (R, blocks, T)
    row, _, column = chose.nonzero(as_tuple=True)
    return row * length + column, chose.sum(-1).flatten().tolist()
