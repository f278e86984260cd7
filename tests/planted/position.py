"""Positions that turn, add or score what they should not."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from planted.fault import planted
from transom.core.state import accumulation_dtype
from transom.registry.manager import get

ROPE, ALIBI, T5 = get("position", "rope"), get("position", "alibi"), get("position", "t5_bias")
LEARNED, SINUSOIDAL = get("position", "learned"), get("position", "sinusoidal")


@planted(17, "shifted places")
class LayoutsMixed(ROPE):
    """Partners are adjacent entries, and the angles are laid out for halves."""

    def rotate(self, x, tokens):
        cos, sin = self._cos_sin(tokens, accumulation_dtype(x.dtype))
        turning = x[..., : self.width]
        partners = turning.unflatten(-1, (-1, 2)).roll(1, -1).flatten(-2)
        return torch.cat([(turning * cos + partners * sin).to(x.dtype), x[..., self.width :]], dim=-1)


@planted(22, "far out")
class AnglesInHalf(ROPE):
    """Angles are taken in the inputs' precision, where fp32 at least was meant: far positions blur."""

    def rotate(self, x, tokens):
        cos, sin = self._cos_sin(tokens, x.dtype)
        turning = x[..., : self.width]
        if self.config.layout == "half":
            partners = turning.roll(self.width // 2, -1)
        else:
            partners = turning.unflatten(-1, (-1, 2)).roll(1, -1).flatten(-2)
        turned = turning * cos.to(x.dtype) + partners * sin.to(x.dtype)
        return torch.cat([turned, x[..., self.width :]], dim=-1)


@planted(17, "differs")
class TurnsByColumns(ROPE):
    """Columns are counted from 0, where the tokens' positions were meant."""

    def rotate(self, x, tokens):
        columns = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        return super().rotate(x, type(tokens)(columns))


@planted(20, "after a move")
class KeepsTheFirstTable(ROPE):
    """Speeds are kept from the first pass, where the dtype and device of each pass were meant to choose them."""

    def _speeds(self, device, dtype):
        if not self._kept:
            self._kept["first"] = self._make_speeds(device, dtype)
        return self._kept["first"].to(dtype)


@planted(2, "must match the size")
class TableUnderOneName(ROPE):
    """A pass keeps the table under a name without the options: a second encoding of other options gets the first's."""

    def rotate(self, x, tokens):
        cos, sin = tokens.once(("rope", x.dtype), lambda: self._cos_sin(tokens, accumulation_dtype(x.dtype)))
        kept = type(tokens)(tokens.pos, tokens.valid, tokens.doc, tokens.marks, {(self, x.dtype): (cos, sin)})
        return super().rotate(x, kept)


@planted(17, "relative position does at shifted places")
class SaysRelative(LEARNED):
    """It is declared relative, and adds a vector of the absolute position."""

    relative = True


@planted(13, "index out of range")
class TableOneShort(LEARNED):
    """Position p takes row p + 1, as where row 0 is kept for padding, of a table that has no row more."""

    def add(self, x, tokens):
        return x + F.embedding(tokens.pos.clamp(max=self.site.max_seq_len) + 1, self.weight)


@planted(0, "'rotate'")
class HookNotThere(ALIBI):
    """It declares that it turns, and has no `rotate`."""

    hooks = frozenset({"score", "rotate"})


@planted(0, "declare it")
class HookNotDeclared(ALIBI):
    """It has a hook `add` that it does not declare: nobody will call it."""

    def add(self, x, tokens):
        return x + tokens.pos.unsqueeze(-1)


@planted(17, "differs")
class ScoresByColumns(ALIBI):
    """Distances are of columns, where those of the tokens were meant: rings and blocks get others'."""

    def score(self, q_tokens, k_tokens, q, k):
        rows, columns = (torch.arange(t.pos.shape[1], device=q.device).unsqueeze(0) for t in (q_tokens, k_tokens))
        return super().score(type(q_tokens)(rows), type(k_tokens)(columns), q, k)


@planted(20, "is a tensor that no state_dict")
class SlopesUnregistered(ALIBI):
    """Slopes are a plain attribute: no move to another device or dtype reaches them."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.kept = torch.tensor(self.slopes(site.n_heads))


@planted(21, "is filled by no method")
class FrequenciesOfTheConstructor(SINUSOIDAL):
    """Frequencies are a buffer that the constructor fills; what is built on the meta device never gets them."""

    def __init__(self, config, site):
        super().__init__(config, site)
        rank = torch.arange(0, site.d_model, 2)
        self.register_buffer("speed", torch.exp(rank * (-math.log(config.theta) / site.d_model)))


@planted(21, "not on the meta device")
class TableOfNumpy(SINUSOIDAL):
    """A table comes from NumPy by `from_numpy`, and stands on the CPU where a model is built on the meta device."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.register_buffer("ranks", torch.from_numpy(np.arange(0, site.d_model, 2)))

    def reset_parameters(self):
        self.ranks.copy_(torch.arange(0, self.site.d_model, 2))


@planted(22, "far out")
class WavesInHalf(SINUSOIDAL):
    """Angles are taken in the inputs' precision, where fp32 at least was meant."""

    def _waves(self, x, tokens):
        rank = torch.arange(0, self.site.d_model, 2, device=x.device, dtype=x.dtype)
        speed = torch.exp(rank * (-math.log(self.config.theta) / self.site.d_model))
        angle = tokens.pos.to(x.dtype).unsqueeze(-1) * speed
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2) * self.config.scale


@planted(24, "has no gradient")
class BiasForEveryHeadTheSame(T5):
    """The first head's biases serve all heads; those of the others are never read, nor trained."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.others = nn.Parameter(torch.empty(config.buckets, site.n_heads - 1))
        self.reset_parameters()

    def reset_parameters(self):
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.1)


@planted(17, "does at shifted places")
class DistanceFromTheStart(T5):
    """The bucket is of the key's position, where its distance was meant."""

    def score(self, q_tokens, k_tokens, q, k):
        offset = -k_tokens.pos.unsqueeze(1).expand(-1, q_tokens.pos.shape[1], -1)
        return F.embedding(self.bucket(offset), self.weight).permute(0, 3, 1, 2)
