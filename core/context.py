"""What all layers of a stack share during one pass: the tokens, the rule of who sees whom, the positions."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .choice import Choices
from .position import Positions, Served, Turns
from .tokens import Tokens, join, visible


@dataclass(eq=False)  # and nothing is set later: a frozen one takes five times as long to make, at each step
class Context:
    """Describe one pass, built once and read by every layer.

    Real tokens are left-aligned: without documents, the column of a token is its position less `seen`.

    `tokens`: the new tokens, (B, T). `causal`: whether tokens may not see later ones.
    `past`: the tokens whose keys an `append` state holds, (B, S); None without one, and where it has slots.
    `seen` (B,) int64: how many real tokens came before; None when nothing is remembered.
    `asked`: how many of the tokens, the last ones, are only asked for: they see, and are not seen.
    `memory` (B, M, C) and `memory_tokens`: what cross attention reads; `memory` is None once its state is primed.
    `positions`: the encodings in use, if any. `served`: the attention that they serve, where one of them projects.
    `weights`: attention weights are appended here when someone asks. `written`: what was written to slots, likewise.
    `slots`: the tokens of all slots of such a state, (B or 1, room), those of the new tokens among them; None too where
    the slots in use are known to be the columns so far, and all are real: these are `past` and the new tokens.
    `used`: how many slots are in use with the new tokens, where such a state is written in place: no more are read.
    `choices`: records what attentions choose by content, or says what they choose, where someone asks.
    `steady`: whether new entries are written to `slots` in place.
    """

    tokens: Tokens
    causal: bool
    past: Tokens | None = None
    seen: Tensor | None = None
    memory: Tensor | None = None
    memory_tokens: Tokens | None = None
    positions: Positions | None = None
    weights: list[Tensor] | None = None
    asked: int = 0
    written: list[Tensor] | None = None
    served: Served | None = None
    slots: Tokens | None = None
    used: int | None = None
    choices: Choices | None = None
    steady: bool = False

    @property
    def scored(self) -> bool:
        """Say whether a position adds to scores."""
        return self.positions is not None and bool(self.positions.scores)

    @property
    def projects(self) -> bool:
        """Say whether a position asks for projections."""
        return self.positions is not None and self.positions.projects

    def serving(self, attention: Served) -> Context:
        """Return this context within one attention: itself, unless a position asks for the attention's projections."""
        return replace(self, served=attention) if self.projects else self

    def of(self, place: int) -> Context:
        """Return this context where one of the sets of projections is at work that the attention served has."""
        return self if self.served is None else replace(self, served=self.served.of(place))

    def at(self, positions: Positions | None) -> Context:
        """Return this context with other positions."""
        return replace(self, positions=positions)

    def once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return a tensor that needs no gradient, made once a pass and shared by all layers (see `Tokens.once`)."""
        return self.tokens.once(key, make)

    @property
    def plain(self) -> bool:
        """Say whether the new tokens are all there are, real ones of one document: a triangle, or no mask, will do."""
        return self.tokens.plain and self.past is None and self.slots is None

    @property
    def keys(self) -> Tokens:
        """Return the tokens of all keys that an appending layer sees: past and new."""
        past, own = self.past, self.own
        if self.slots is not None:
            return self.slots
        return own if past is None else self.tokens.once("keys", lambda: join(past, own))

    def append(self, old: Tensor, new: Tensor, dim: int = 1) -> Tensor:
        """Return what is remembered of all tokens, `keys`: what a state declared as `append` holds, with the new.

        old (B, S, ...) and new (B, T, ...), alike but for S and T; `dim`: where these stand. They are put behind each
        other, (B, S + T, ...), or new is written to its slots of old, (B, S, ...), where there are slots; of these,
        those in use are returned, (B, `used`, ...), where they are known and old is written in place.
        """
        if self.used is not None:
            after = old.narrow(dim, 0, self.used)
            if self.slots is None:
                length = new.shape[dim]
                after.narrow(dim, self.used - length, length).copy_(new)
            else:
                after.scatter_(dim, self._places(new, dim), new)
        elif self.slots is not None:
            places = self._places(new, dim)
            after = old.scatter_(dim, places, new) if self.steady else old.scatter(dim, places, new)
        else:
            return torch.cat([old, new], dim=dim)
        if self.written is not None:
            self.written.append(after)
        return after

    def _places(self, new: Tensor, dim: int) -> Tensor:
        """Return the slot of each entry of new (B, T, ...), whose tokens stand along `dim`."""
        assert self.seen is not None
        seen = self.seen
        column = self.tokens.once("slots", lambda: seen.unsqueeze(1) + torch.arange(new.shape[dim], device=new.device))
        shape = [1] * new.dim()
        shape[0], shape[dim] = column.shape
        return column.reshape(shape).expand_as(new)

    @property
    def own(self) -> Tokens:
        """Return the new tokens that give keys: all but those that are only asked for."""
        return self.tokens.once("own", lambda: self.tokens[: -self.asked]) if self.asked else self.tokens

    @property
    def length(self) -> Tensor | None:
        """Return how many real tokens each row brings, (B,) int64; None when all columns are real."""
        valid = self.tokens.valid
        return None if valid is None else self.tokens.once("length", lambda: valid.sum(1))

    @property
    def begins(self) -> Tensor:
        """Return which new tokens nothing came before, (B or 1, T) bool: the first of a text, and of a document."""
        return self.tokens.once("begins", self._make_begins)

    def _make_begins(self) -> Tensor:
        doc, pos = self.tokens.doc, self.tokens.pos
        if doc is not None:
            return torch.cat([torch.ones_like(doc[:, :1], dtype=torch.bool), doc[:, 1:] != doc[:, :-1]], dim=1)
        first = (torch.arange(pos.shape[1], device=pos.device) == 0).unsqueeze(0)
        return first if self.seen is None else first & (self.seen == 0).unsqueeze(1)

    def choose(self, best: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what an attention is to look at, by content: `best`, unless whoever compares paths says otherwise.

        best (B, T, ..., N) int64: for each new token what has the highest scores, in any order; -1 stands for none.
        `score` gives what such a tensor chooses its scores, (B, T, ..., N): it is asked where choices differ, by how
        much. An attention that calls this says so in `chooses`, and calls it once a pass.
        """
        return best if self.choices is None else self.choices.settle(best, score, self.tokens.valid)

    def visible(self, k: Tokens) -> Tensor:
        """Return the model's own rule for the new tokens and keys at k: (B or 1, T, S) bool."""
        return visible(self.tokens, k, causal=self.causal)

    def rotate(self, x: Tensor) -> Tensor:
        """Return queries or keys of the new tokens, x (B, T, H, D), turned by the positions that rotate."""
        return x if self.positions is None else self.positions.rotate(x, self.tokens)

    @property
    def rotates(self) -> bool:
        """Say whether a position turns queries and keys."""
        return self.positions is not None and bool(self.positions.rotates)

    def turning(self) -> Turns | None:
        """Return the table that `rotate` turns by; None where there is no one such table."""
        rotating = () if self.positions is None else self.positions.rotates
        return self.tokens.once(("turning", rotating[0]), rotating[0].turning) if len(rotating) == 1 else None

    def score(self, q_tokens: Tokens, k_tokens: Tokens | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Return what positions add to scores, (B or 1, H, T, S); None when none does. No k_tokens: `keys`."""
        bias: Tensor | None = None
        for position in () if self.positions is None else self.positions.scores:
            keys = self.keys if k_tokens is None else k_tokens
            if position.projects:
                assert self.served is not None, "a mechanism is called by its shell"
                added = position.score_with(self.served, q_tokens, keys, q, k)
            else:
                added = position.score(q_tokens, keys, q, k)
            bias = added if bias is None else bias + added
        return bias
