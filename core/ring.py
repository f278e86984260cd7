"""Rings: the newest entries of a sequence at slot = position mod size, whose positions follow from the count alone.

And heads: the first entries, at slot = position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tokens import Tokens


def ring_tokens(seen: Tensor, size: int) -> Tokens:
    """Return what stands in each slot after `seen` (B,) tokens, (B, size); slots not yet written are not valid."""
    slot = torch.arange(size, device=seen.device)
    last = seen.unsqueeze(1) - 1
    pos = last - torch.remainder(last - slot, size)
    return Tokens(pos, pos >= 0)


def ring_write(ring: Tensor, new: Tensor, seen: Tensor, length: Tensor | None) -> Tensor:
    """Return ring (B, size, ...) after new entries (B, T, ...), of which the first `length` (B,) are real (None: all).

    Entries that a later one overtakes are never written, so T may be larger than the ring.
    """
    if new.shape[1] == 0:
        return ring
    after = seen + (new.shape[1] if length is None else length)
    column = ring_tokens(after, ring.shape[1]).pos - seen.unsqueeze(1)
    if torch.compiler.is_exporting():
        slot = torch.arange(ring.shape[1], device=ring.device)
        return _entries(torch.cat([ring, new], dim=1), torch.where(column >= 0, column + ring.shape[1], slot))
    index = column.clamp(min=0, max=new.shape[1] - 1)
    spread = (...,) + (None,) * (ring.dim() - 2)
    taken = new.gather(1, index[spread].expand(ring.shape))
    return torch.where((column >= 0)[spread], taken, ring)


def ring_in_order(ring: Tensor, seen: Tensor) -> Tensor:
    """Return ring (B, size, ...) by position, oldest first, so that its last entry is position `seen - 1`."""
    size = ring.shape[1]
    slot = torch.remainder(seen.unsqueeze(1) + torch.arange(size, device=seen.device), size)
    return ring.gather(1, slot[(...,) + (None,) * (ring.dim() - 2)].expand(ring.shape))


def head_write(head: Tensor, new: Tensor, seen: Tensor, length: Tensor | None) -> Tensor:
    """Return head (B, size, ...) with those of the new entries (B, T, ...) whose position is below its size.

    The first `length` (B,) of the new ones are real (None: all).
    """
    if new.shape[1] == 0:
        return head
    column = torch.arange(head.shape[1], device=head.device) - seen.unsqueeze(1)
    brought = torch.full_like(seen, new.shape[1]) if length is None else length
    spread = (...,) + (None,) * (head.dim() - 2)
    index = column.clamp(min=0, max=new.shape[1] - 1)[spread].expand(-1, -1, *new.shape[2:])
    taken = (column >= 0) & (column < brought.unsqueeze(1))
    return torch.where(taken[spread], new.gather(1, index), head)


def _entries(x: Tensor, index: Tensor) -> Tensor:
    """Return x (B, S, ...) at index (B, N), (B, N, ...), by one operator of a graph that copies whole entries."""
    shape = (*index.shape, *x.shape[2:])
    inputs = [x, index.unsqueeze(2)]
    taken: Tensor = torch.onnx.ops.symbolic("GatherND", inputs, attrs={"batch_dims": 1}, dtype=x.dtype, shape=shape)
    return taken
