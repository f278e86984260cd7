"""Who stands where: the tokens of a pass as data, and the rule of who sees whom.

No mask is made here unless somebody asks: what is statically absent (`None`) costs nothing, and every attention turns
the rule into what its kernel wants.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError

Made = TypeVar("Made")
ORDER = "order"
"""The mark of tokens that have an order of their own: none sees what comes later in it; 0 is seen by all."""


@dataclass(eq=False)  # and nothing is set later: a frozen one takes five times as long to make, at each step
class Tokens:
    """Hold where the tokens of a sequence stand.

    `pos` (B or 1, T) int64: position within the token's document, real tokens counted from 0.
    `valid` (B, T) bool: False at padding; None when there is none.
    `doc` (B, T) int64: the document of a packed row; None when a row is one document.
    `marks` (B, T) int64: what layers and positions read of each token besides, by the name of the input; one that a
    call leaves out is not there, and means zeros.
    `first`: the position of the first column, where all rows stand alike, one position a column, and it is known
    without asking a device; what is moved or replaced does not keep it.
    """

    pos: Tensor
    valid: Tensor | None = None
    doc: Tensor | None = None
    marks: Mapping[str, Tensor] = field(default_factory=dict)
    first: int | None = field(default=None, init=False)
    _made: dict[Hashable, object] = field(default_factory=dict, repr=False)

    @staticmethod
    def in_order(pos: Tensor, first: int) -> Tokens:
        """Return the plain tokens of rows that all stand at `pos` (1, T): `first` and those that follow it."""
        tokens = Tokens(pos)
        tokens.first = first
        return tokens

    def __getitem__(self, columns: slice) -> Tokens:
        """Return the tokens of some columns."""
        return self.map(lambda t: t[:, columns])

    def map(self, move: Callable[[Tensor], Tensor]) -> Tokens:
        """Return these tokens with every tensor moved the same way: sliced, gathered, folded into blocks."""
        return Tokens(
            move(self.pos),
            None if self.valid is None else move(self.valid),
            None if self.doc is None else move(self.doc),
            {name: move(mark) for name, mark in self.marks.items()},
        )

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what `make` gives, made at the first call of a pass and shared by all layers after it.

        For values that need no gradient (tables, masks): activation checkpointing would lose a gradient's path.
        """
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[return-value]

    @property
    def rows(self) -> int:
        """Return how many rows there are to tell apart: 1 where all stand alike."""
        there = (t for t in (self.pos, self.valid, self.doc, *self.marks.values()) if t is not None)
        return next((t.shape[0] for t in there if t.shape[0] != 1), 1)  # 0 where a batch is empty

    @property
    def plain(self) -> bool:
        """Say that each row is one document without padding, so that column order is all there is to know."""
        return self.valid is None and self.doc is None and ORDER not in self.marks


def join(past: Tokens, new: Tokens) -> Tokens:
    """Return the tokens of two stretches as one, the past first; `doc` is dropped (state and documents never meet)."""
    batch = new.pos.shape[0] if past.pos.shape[0] == 1 else past.pos.shape[0]
    pos = torch.cat([past.pos.expand(batch, -1), new.pos.expand(batch, -1)], dim=1)
    marks = {}
    for name in {**past.marks, **new.marks}:
        both = (t.marks.get(name, torch.zeros_like(t.pos)).expand(batch, -1) for t in (past, new))
        marks[name] = torch.cat(list(both), dim=1)
    if past.valid is None and new.valid is None:
        return Tokens(pos, marks=marks)
    valid = [torch.ones_like(t.pos, dtype=torch.bool).expand(batch, -1) if t.valid is None else t.valid
             for t in (past, new)]  # fmt: skip
    return Tokens(pos, torch.cat(valid, dim=1), marks=marks)


def with_asked(tokens: Tokens, asked: Tensor) -> Tokens:
    """Return tokens, which have an order, and behind them those that are asked for, at columns `asked` (B, P).

    These see what comes before their token in the order, and not the token itself.
    """

    def both(t: Tensor) -> Tensor:
        t = t.expand(asked.shape[0], -1)
        return torch.cat([t, t.gather(1, asked)], dim=1)

    found = tokens.map(both)
    itself = torch.arange(found.pos.shape[1], device=asked.device) >= tokens.pos.shape[1]
    return replace(found, marks={**found.marks, ORDER: found.marks[ORDER] - itself.long()})


def visible(q: Tokens, k: Tokens, *, causal: bool) -> Tensor:
    """Return who may see whom, (B or 1, T, S) bool.

    Not padding, not what is later (when causal), not another document, not what comes later in an order of their own.
    """
    q_pos, k_pos = q.pos.unsqueeze(2), k.pos.unsqueeze(1)
    seen = k_pos <= q_pos if causal else (k_pos == k_pos).expand(-1, q_pos.shape[1], -1)
    if k.valid is not None:
        seen = seen & k.valid.unsqueeze(1)
    if q.doc is not None and k.doc is not None:
        seen = seen & (q.doc.unsqueeze(2) == k.doc.unsqueeze(1))
    if ORDER in q.marks and ORDER in k.marks:
        seen = seen & (k.marks[ORDER].unsqueeze(1) <= q.marks[ORDER].unsqueeze(2))
    return seen


@dataclass(frozen=True, eq=False)
class Permuted:
    """Give rows an order of their own (Yang et al. 2019).

    order (B, T) int64, from 1: no token sees a later one, and tokens of one number see each other. asked (B, P) int64:
    columns of tokens that are asked for. What is computed is of these then, (B, P, C): a second stream, which begins
    with the same vector everywhere and sees what comes before each token in the order, beside the first, which sees the
    token too.
    """

    order: Tensor
    asked: Tensor | None = None

    @staticmethod
    def of(order: Tensor | None, asked: Tensor | None) -> Permuted | None:
        """Return the order that a call gives its rows, if it gives one.

        Raises:
            InputError: tokens are asked for without an order.
        """
        if order is None and asked is not None:
            raise InputError("asked: tokens that are asked for need an order; without one they would see themselves")
        return None if order is None else Permuted(order, asked)


@dataclass(frozen=True, eq=False)
class Packing:
    """Move valid tokens to the left of their row and back, at static shapes.

    `order` (B, T): the column that each packed column comes from. `dest` (B, T): the packed column of each column.
    """

    mask: Tensor
    order: Tensor
    dest: Tensor

    @staticmethod
    def of(mask: Tensor) -> Packing:
        """Read the packing from an attention mask (B, T), 1 or True at real tokens."""
        mask = mask.bool()
        column = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        # Distinct keys need no stable sort, which ONNX has not.
        order = torch.sort(torch.where(mask, column, column + mask.shape[1]), dim=1).values % mask.shape[1]
        return Packing(mask, order, (mask.cumsum(1) - 1).clamp(min=0))

    @property
    def length(self) -> Tensor:
        """Return how many real tokens each row has, (B,) int64."""
        return self.mask.sum(1)

    @property
    def valid(self) -> Tensor:
        """Return the packed mask, (B, T) bool: True in the first `length` columns of each row."""
        return torch.arange(self.mask.shape[1], device=self.mask.device) < self.length.unsqueeze(1)

    def pack(self, x: Tensor) -> Tensor:
        """Left-align x (B, T, ...); what stood at padding becomes 0, NaN included."""
        keep = _spread(self.valid, x)
        return torch.where(keep, _take(x, self.order), torch.zeros((), dtype=x.dtype, device=x.device))

    def unpack(self, x: Tensor) -> Tensor:
        """Put packed x (B, T, ...) back to its columns, 0 at padding."""
        keep = _spread(self.mask, x)
        return torch.where(keep, _take(x, self.dest), torch.zeros((), dtype=x.dtype, device=x.device))


def _spread(flags: Tensor, x: Tensor) -> Tensor:
    return flags.reshape(flags.shape + (1,) * (x.dim() - 2))


def _take(x: Tensor, columns: Tensor) -> Tensor:
    return x.gather(1, _spread(columns, x).expand(columns.shape + x.shape[2:]))


def lengths(tokens: Tokens) -> Tensor:
    """Return how many tokens the document of each token has, up to the last at hand: (B or 1, T or 1) int64."""
    if tokens.doc is None:
        pos = tokens.pos if tokens.valid is None else tokens.pos.masked_fill(~tokens.valid, -1)
        none = pos.new_full((pos.shape[0], 1), -1)  # where there is no token
        return torch.cat([none, pos], dim=1).amax(1, keepdim=True) + 1
    column = torch.arange(tokens.pos.shape[1], device=tokens.pos.device).expand(tokens.doc.shape)
    last = torch.ones_like(tokens.doc, dtype=torch.bool)
    last[:, :-1] = tokens.doc[:, 1:] != tokens.doc[:, :-1]
    ends = torch.where(last, column, column.shape[1]).flip(1).cummin(1).values.flip(1)
    return tokens.pos.expand(tokens.doc.shape).gather(1, ends) + 1


def document_positions(doc: Tensor) -> Tensor:
    """Return the position of each token within its document, for doc (B, T) whose documents are contiguous."""
    column = torch.arange(doc.shape[1], device=doc.device).expand(doc.shape)
    first = torch.ones_like(doc, dtype=torch.bool)
    first[:, 1:] = doc[:, 1:] != doc[:, :-1]
    return column - torch.where(first, column, 0).cummax(1).values
