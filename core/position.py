"""The contract of positional encodings: three hooks, each declared."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from .component import Component, Site
from .tokens import Tokens


class Served(Protocol):
    """The attention that a position serves in one layer, as a position that `projects` is handed it.

    `site`: that layer's. `scale`: of its scores.
    """

    site: Site

    @property
    def scale(self) -> float:
        """Return what products of queries and keys are multiplied by."""

    def queries(self, x: Tensor) -> Tensor:
        """Return vectors x (..., C) as this attention's queries, (..., H, D), not turned."""

    def keys(self, x: Tensor) -> Tensor:
        """Return vectors x (..., C) as this attention's keys, (..., K, D), not turned."""

    def of(self, place: int) -> Served:
        """Return this attention by one of its sets of projections."""


@dataclass(frozen=True, eq=False)
class Turns:
    """Say how heads are turned by nothing but their tokens' positions: pair by pair, by the angles of a table.

    cos, sin (positions, pairs): of the angle that a pair turns by, for positions from 0 on. `interleaved`: whether
    entries 2i and 2i + 1 are a pair, or i and i + pairs. Entries of a head beyond the pairs stay.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool


class Position(nn.Module, Component, ABC):
    """Tell a model where its tokens stand, through the hooks that `hooks` declares.

    `relative`: shifting all positions by the same amount changes nothing. `projects`: its scores need the projections
    of the attention that it serves, so that it has `score_with` in place of `score`. `by_content`: its scores depend on
    the queries and keys of heads, not on their places alone, so that a mixer can't take it.
    `site.n_heads` and `site.head_dim` are those of the attentions that it serves; `site.d_model` is the width of the
    embeddings that it is added to, or of the model where it is added to none; `site.n_layers` is how many layers it
    serves, from `site.layer` on.
    """

    kind: ClassVar[str] = "position"
    hooks: ClassVar[frozenset[str]]
    relative: ClassVar[bool]
    projects: ClassVar[bool] = False
    by_content: ClassVar[bool] = False

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()
        self.config = config
        self.site = site

    def most(self) -> int:
        """Return how many tokens in a row it has places for: `max_seq_len`, unless it says less."""
        return self.site.max_seq_len

    def edges(self) -> tuple[int, ...]:
        """Return the lengths, in tokens, beyond which a text's state can't be used that was begun before; none here."""
        return ()

    def add(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return embeddings x (B, T, C) with their positions added."""
        raise NotImplementedError(f"{type(self).__name__} declares no hook 'add'")

    def rotate(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return queries or keys x (B, T, H, D) turned by their positions."""
        raise NotImplementedError(f"{type(self).__name__} declares no hook 'rotate'")

    def prepare(self, x: Tensor, tokens: Tokens) -> None:
        """Have made, by `tokens.once`, what all layers read in `rotate`; x (B, T, C) are the embeddings.

        Layers that are compiled one by one are alike then: the first is no other than those that find it made.
        """

    def turning(self) -> Turns | None:
        """Return the table that `rotate` turns by, for operators that turn by one; None, where no table says it all.

        It is twice as long as a row may be: padding may stand behind a row, in as many new columns.
        """
        return None

    def score(self, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
        """Return what is added to the scaled scores, (B or 1, H, T, S).

        The tokens may be any slice or gathering (ring slots, blocks); q (B, T, H, D) and k (B, S, K, D) stand at them.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no hook 'score'")

    def score_with(self, served: Served, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
        """Return what `score` does, (B or 1, H, T, S), for the attention of one layer.

        It is handed over with each call: a module that every layer registered would name its weights once for each.
        """
        raise NotImplementedError(f"{type(self).__name__} does not declare that it projects")


class Positions:
    """Hold the encodings that serve a layer, in order, sorted once by what each does: a pass asks many times.

    `adds`, `rotates`, `scores`: those that declare the hook. `projects`: whether one of them asks for projections.
    """

    def __init__(self, positions: Iterable[Position] = ()) -> None:
        self._all = tuple(positions)
        self.adds, self.rotates, self.scores = (
            tuple(position for position in self._all if hook in position.hooks) for hook in ("add", "rotate", "score")
        )
        self.projects = any(position.projects for position in self._all)

    def __iter__(self) -> Iterator[Position]:
        return iter(self._all)

    def add(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return embeddings x (B, T, C) with all positions added that are added."""
        for position in self.adds:
            x = position.add(x, tokens)
        return x

    def prepare(self, x: Tensor, tokens: Tokens) -> None:
        """Have made what those that rotate need of the tokens, x (B, T, C) being their embeddings."""
        for position in self.rotates:
            position.prepare(x, tokens)

    def rotate(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return queries or keys x (B, T, H, D) turned by all positions that rotate."""
        for position in self.rotates:
            x = position.rotate(x, tokens)
        return x


def in_each_row(x: Tensor, rows: int) -> Tensor:
    """Return x (R, ...) for `rows` rows of queries: repeated where they are folded from several that stand alike."""
    return x if x.shape[0] in (1, rows) else x.repeat(rows // x.shape[0], *[1] * (x.dim() - 1))
