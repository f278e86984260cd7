"""The closed list of ways in which a published checkpoint can lay one of our parameters out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Get = Callable[[str], Tensor]
"""Gives a published tensor by its name; moves ask for one at a time and keep none."""


class Move(ABC):
    """Say how a parameter is made of published tensors, and these of it: numbers are moved, never computed with.

    `save` undoes `load` bit for bit, in every dtype. Moves nest: `of` and `parts` are moves. "Ours" is the parameter,
    "theirs" what is published.
    """

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Return the names of the published tensors."""

    @abstractmethod
    def load(self, get: Get) -> Tensor:
        """Return ours, made of what `get` gives; it may share memory with it. Raise ValueError where theirs differ."""

    @abstractmethod
    def save(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return theirs by name, made of ours; they may share its memory. Raise ValueError where ours does not fit."""


@dataclass(frozen=True)
class Take(Move):
    """Take a published tensor as it is, of any shape."""

    name: str

    def names(self) -> tuple[str, ...]:
        """Return its name."""
        return (self.name,)

    def load(self, get: Get) -> Tensor:
        """Return the tensor itself."""
        return get(self.name)

    def save(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return the tensor itself."""
        return {self.name: tensor}


@dataclass(frozen=True)
class Wrapped(Move, ABC):
    """Stand at the root of moves that reorder one tensor."""

    of: Move

    @abstractmethod
    def ours(self, theirs: Tensor) -> Tensor:
        """Return our order of what is published."""

    @abstractmethod
    def theirs(self, ours: Tensor) -> Tensor:
        """Return the published order of what is ours."""

    def names(self) -> tuple[str, ...]:
        """Return the names of the published tensors."""
        return self.of.names()

    def load(self, get: Get) -> Tensor:
        """Return ours, made of what `get` gives."""
        return self.ours(self.of.load(get))

    def save(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return theirs by name."""
        return self.of.save(self.theirs(tensor))


@dataclass(frozen=True)
class Transpose(Wrapped):
    """Swap the last two dimensions: theirs (..., in, out), ours (..., out, in)."""

    def ours(self, theirs: Tensor) -> Tensor:
        """Return (..., out, in) of (..., in, out)."""
        if theirs.dim() < 2:
            raise ValueError(f"a tensor of shape {tuple(theirs.shape)} has no two dimensions to swap")
        return theirs.transpose(-1, -2)

    def theirs(self, ours: Tensor) -> Tensor:
        """Return (..., in, out) of (..., out, in)."""
        return self.ours(ours)


@dataclass(frozen=True)
class Reshape(Wrapped):
    """Give the same numbers in the same order another shape: theirs of shape `from_shape`, ours of shape `to_shape`."""

    from_shape: tuple[int, ...]
    to_shape: tuple[int, ...]

    def ours(self, theirs: Tensor) -> Tensor:
        """Return a tensor of `to_shape` for one of `from_shape`."""
        _expect(theirs, self.from_shape)
        return theirs.reshape(self.to_shape)

    def theirs(self, ours: Tensor) -> Tensor:
        """Return a tensor of `from_shape` for one of `to_shape`."""
        _expect(ours, self.to_shape)
        return ours.reshape(self.from_shape)


@dataclass(frozen=True)
class Heads(Wrapped):
    """Bring fused heads from group by group to part by part.

    Theirs (groups * sum(sizes), ...): every group holds its share of each part, `sizes` rows of them. Ours, of the same
    shape: the first part of all groups, then the second, and so on. Fused q, k, v of head_dim D:

    - per head (q, k, v), as GPT-NeoX and BLOOM: `groups` H, `sizes` (D, D, D);
    - per group of G query heads [q..., k, v], as Falcon: `groups` K, `sizes` (G * D, D, D).
    """

    groups: int
    sizes: tuple[int, ...]

    def ours(self, theirs: Tensor) -> Tensor:
        """Return part by part what is group by group."""
        rest = self._rest(theirs)
        grouped = theirs.reshape(self.groups, sum(self.sizes), *rest)
        return torch.cat([part.reshape(-1, *rest) for part in grouped.split(self.sizes, dim=1)])

    def theirs(self, ours: Tensor) -> Tensor:
        """Return group by group what is part by part."""
        rest = self._rest(ours)
        parts = ours.split([self.groups * size for size in self.sizes])
        grouped = [part.reshape(self.groups, -1, *rest) for part in parts]
        return torch.cat(grouped, dim=1).reshape(ours.shape)

    def _rest(self, tensor: Tensor) -> tuple[int, ...]:
        rest = tuple(tensor.shape[1:])
        _expect(tensor, (self.groups * sum(self.sizes), *rest))
        return rest


@dataclass(frozen=True)
class Interleave(Wrapped):
    """Bring rows that a rotation turns in pairs from side by side to half by half.

    Theirs and ours (heads * D, ...). Of each head's D rows the first `width` turn: theirs as (x0, y0, x1, y1, ...),
    ours as (x0, x1, ..., y0, y1, ...). The rest stays.
    """

    heads: int
    width: int

    def ours(self, theirs: Tensor) -> Tensor:
        """Return halves for pairs."""
        return self._swap(theirs, (self.width // 2, 2))

    def theirs(self, ours: Tensor) -> Tensor:
        """Return pairs for halves."""
        return self._swap(ours, (2, self.width // 2))

    def _swap(self, tensor: Tensor, sizes: tuple[int, int]) -> Tensor:
        rows, *rest = tensor.shape or (0,)
        if self.width % 2 or not rows or rows % self.heads or rows // self.heads < self.width:
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} is not of {self.heads} heads whose first {self.width} rows "
                "are pairs"
            )
        headed = tensor.reshape(self.heads, -1, *rest)
        turning = headed[:, : self.width].reshape(self.heads, *sizes, *rest).transpose(1, 2)
        turned = turning.reshape(self.heads, self.width, *rest)
        return torch.cat([turned, headed[:, self.width :]], dim=1).reshape(tensor.shape)


@dataclass(frozen=True)
class Order(Wrapped):
    """Bring parts of `sizes` rows into another order: ours begins with part `order[0]` of theirs."""

    sizes: tuple[int, ...]
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.sizes))):
            raise ValueError(f"{self.order} is no order of {len(self.sizes)} parts")

    def ours(self, theirs: Tensor) -> Tensor:
        """Return the parts in our order."""
        _expect(theirs, (sum(self.sizes), *theirs.shape[1:]))
        parts = theirs.split(self.sizes)
        return torch.cat([parts[place] for place in self.order])

    def theirs(self, ours: Tensor) -> Tensor:
        """Return the parts in theirs."""
        _expect(ours, (sum(self.sizes), *ours.shape[1:]))
        parts = ours.split([self.sizes[place] for place in self.order])
        return torch.cat([parts[self.order.index(place)] for place in range(len(parts))])


@dataclass(frozen=True)
class Rows(Wrapped):
    """Take `count` rows from row `start` on: theirs (total, ...), ours (count, ...).

    For tables with rows that mean nothing: positions that begin at an offset, vocabularies rounded up. What is left
    out is lost: `save` writes `fill` there, so that it gives back what was loaded where that held `fill`.
    """

    start: int
    count: int
    total: int
    fill: float = 0.0

    def ours(self, theirs: Tensor) -> Tensor:
        """Return the rows that count."""
        _expect(theirs, (self.total, *theirs.shape[1:]))
        return theirs.narrow(0, self.start, self.count)

    def theirs(self, ours: Tensor) -> Tensor:
        """Return all rows, `fill` in those that do not count."""
        rest = tuple(ours.shape[1:])
        _expect(ours, (self.count, *rest))
        whole = ours.new_full((self.total, *rest), self.fill)
        whole.narrow(0, self.start, self.count).copy_(ours)
        return whole


@dataclass(frozen=True)
class Concat(Move):
    """Join parts along a dimension: theirs of `sizes` there, ours of their sum, alike otherwise."""

    parts: tuple[Move, ...]
    sizes: tuple[int, ...]
    dim: int = 0

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.sizes):
            raise ValueError(f"{len(self.parts)} parts can't have {len(self.sizes)} sizes")

    def names(self) -> tuple[str, ...]:
        """Return the names of all parts, in order."""
        return tuple(name for part in self.parts for name in part.names())

    def load(self, get: Get) -> Tensor:
        """Join what the parts load, one after the other."""

        def shape(piece: Tensor) -> list[int]:
            return [*piece.shape[: self.dim], sum(self.sizes), *piece.shape[self.dim + 1 :]]

        return _gather(self.parts, get, shape, lambda whole: whole.split(self.sizes, self.dim))

    def save(self, tensor: Tensor) -> dict[str, Tensor]:
        """Split ours into the parts."""
        if tensor.dim() <= self.dim or tensor.shape[self.dim] != sum(self.sizes):
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} is not {_sum(self.sizes)} along dimension {self.dim}"
            )
        return _scatter(self.parts, tensor.split(self.sizes, self.dim))


@dataclass(frozen=True)
class Stack(Move):
    """Lay parts of one shape (...) on each other: ours (parts, ...), as weights of experts are kept."""

    parts: tuple[Move, ...]

    def names(self) -> tuple[str, ...]:
        """Return the names of all parts, in order."""
        return tuple(name for part in self.parts for name in part.names())

    def load(self, get: Get) -> Tensor:
        """Stack what the parts load, one after the other."""
        return _gather(self.parts, get, lambda piece: [len(self.parts), *piece.shape], Tensor.unbind)

    def save(self, tensor: Tensor) -> dict[str, Tensor]:
        """Give every part its slice."""
        _expect(tensor, (len(self.parts), *tensor.shape[1:]))
        return _scatter(self.parts, tensor.unbind())


def _gather(
    parts: tuple[Move, ...],
    get: Get,
    shape: Callable[[Tensor], list[int]],
    places: Callable[[Tensor], Iterable[Tensor]],
) -> Tensor:
    """Load parts one by one into a tensor of the `shape` that follows from the first; no two are held at a time."""
    piece = parts[0].load(get)
    whole = piece.new_empty(shape(piece))
    first, *others = places(whole)
    _put(piece, first)
    del piece
    for part, place in zip(parts[1:], others, strict=True):
        _put(part.load(get), place)
    return whole


def _put(piece: Tensor, place: Tensor) -> None:
    """Copy one part to its place; nothing is stretched or rounded on the way."""
    _expect(piece, tuple(place.shape))
    if piece.dtype != place.dtype:
        raise ValueError(f"parts of one parameter are {place.dtype} and {piece.dtype}".replace("torch.", ""))
    place.copy_(piece)


def _scatter(parts: Iterable[Move], pieces: Iterable[Tensor]) -> dict[str, Tensor]:
    return {name: saved for part, piece in zip(parts, pieces, strict=True) for name, saved in part.save(piece).items()}


def _expect(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} should be of shape {shape}")


def _sum(sizes: tuple[int, ...]) -> str:
    return f"{' + '.join(map(str, sizes))} = {sum(sizes)}"


def conv1d(name: str) -> Move:
    """Take the weight of a map that is published as (in, out), as GPT-2 has them, or its bias."""
    return Take(name) if name.endswith("bias") else Transpose(Take(name))


Layouts = Mapping[str, Mapping[str, Move]]
"""How a component's parameters are published: a layout's name -> parameter's name -> move."""
