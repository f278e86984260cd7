"""How a rotation is stretched to texts longer than those that it was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


def growth(factor: float, mscale: float = 1.0) -> float:
    """Return the square root of what scores grow by for texts `factor` times as long: 0.1 mscale ln factor + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Make all scores larger, those of entries that do not turn among them, for longer texts (DeepSeek-AI 2024).

    factor: by how much longer the texts are. mscale: how strongly; scores grow by (0.1 mscale ln factor + 1)^2.
    """

    factor: float
    mscale: float = 0.0

    def __post_init__(self) -> None:
        if self.factor < 1.0:
            raise ValueError(f"factor: {self.factor} makes texts shorter; at least 1")

    @property
    def size(self) -> float:
        """Return the square root of what scores are multiplied by."""
        return growth(self.factor, self.mscale)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Slow the pairs of a rotation down, those most that turn least.

    kind: `linear` slows all alike (Chen et al. 2023); `llama3` by how often a pair turns (Dubey et al. 2024); `yarn` by
    its place among the pairs, and makes scores larger (Peng et al. 2023); `longrope` each by a factor of its own, and
    makes scores larger (Ding et al. 2024); `dynamic` from not at all for the quickest to in full for the slowest, by 1
    + factor (length / trained - 1) of the text's length (bloc97 and emozilla 2023). factor: by how much (longrope:
    max_seq_len / trained). trained: the tokens of the texts before; linear needs none. slow, fast: pairs that turn no
    more often than slow in `trained` tokens are slowed in full, and not at all from fast on (llama3: 1 and 4, yarn: 1
    and 32). magnitude: what queries and keys are multiplied by (1; yarn: 0.1 ln factor + 1; longrope: (1 + ln factor /
    ln trained)^1/2). mscale, mscale_all_dim: both given, make the magnitude of yarn (0.1 mscale ln factor + 1) / (0.1
    mscale_all_dim ln factor + 1), for an attention that stretches all scores.

    truncate: whether the places among the pairs between which yarn passes over are rounded outwards to whole ones.

    short, long: longrope's factors, one a pair. A text of up to `trained` tokens is turned by the short ones, all of
    it, and a longer one by the long ones. So what a state keeps of a text can't serve beyond `trained` tokens, if it
    was begun before: the text is read anew there. With dynamic each length beyond `trained` turns all of a text
    otherwise: there it is read anew for each token.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope", "dynamic"]
    factor: float | None = None
    trained: int | None = None
    slow: float | None = None
    fast: float | None = None
    magnitude: float | None = None
    short: tuple[float, ...] | None = None
    long: tuple[float, ...] | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if not self.truncate and self.kind != "yarn":
            raise ValueError(f"truncate: yarn alone passes over between places, and {self.kind} has none to round")
        for name in ("short", "long"):
            factors = getattr(self, name)
            if (factors is None) == (self.kind == "longrope"):
                raise ValueError(f"{name}: longrope needs it, and no other kind has it: a factor for each pair")
            if factors is not None and min(factors, default=0.0) <= 0.0:
                raise ValueError(f"{name}: a factor of {min(factors, default=0.0)} turns nothing; all above 0")
        if self.factor is None and self.kind != "longrope":
            raise ValueError(f"factor: {self.kind} needs it: by how much pairs are slowed down")
        if self.factor is not None and self.factor < 1.0:
            raise ValueError(f"factor: {self.factor} makes texts shorter; at least 1")
        if self.trained is None and self.kind != "linear":
            raise ValueError(f"trained: {self.kind} needs it: the tokens of the texts that the rotation was trained on")
        low, high = self.turns
        if not 0.0 < low < high:
            raise ValueError(f"slow: {low} must be above 0 and below fast, {high}")

    @property
    def by_length(self) -> bool:
        """Say whether pairs turn otherwise in texts of more than `trained` tokens."""
        return self.kind in ("longrope", "dynamic")

    def edges(self, longest: int) -> tuple[int, ...]:
        """Return the lengths beyond which all of a text turns otherwise, for texts of at most `longest` tokens."""
        if not self.by_length:
            return ()
        assert self.trained is not None
        beyond = range(self.trained, longest)
        return tuple(beyond if self.kind == "dynamic" else beyond[:1])

    def resolved(self, longest: int) -> Scaling:
        """Return the same with every number filled in, for texts of at most `longest` tokens."""
        if self.factor is not None:
            return self
        assert self.trained is not None
        return replace(self, factor=max(longest / self.trained, 1.0))

    @property
    def turns(self) -> tuple[float, float]:
        """Return `slow` and `fast` with their defaults."""
        low, high = {"llama3": (1.0, 4.0)}.get(self.kind, (1.0, 32.0))
        return low if self.slow is None else self.slow, high if self.fast is None else self.fast

    @property
    def size(self) -> float:
        """Return `magnitude` with its default."""
        if self.magnitude is not None:
            return self.magnitude
        assert self.factor is not None
        if self.kind == "longrope":
            assert self.trained is not None
            return math.sqrt(1.0 + math.log(self.factor) / math.log(self.trained))
        if self.kind != "yarn":
            return 1.0
        if self.mscale and self.mscale_all_dim:
            return growth(self.factor, self.mscale) / growth(self.factor, self.mscale_all_dim)
        return growth(self.factor)

    def scaled(self, speed: Tensor, theta: float) -> Tensor:
        """Return how fast pairs turn, (pairs,) radians a token, once they are slowed down; `theta`: the rotation's.

        Where the length of a text counts, it is a text of at most `trained` tokens.
        """
        if self.kind == "dynamic":
            return speed
        if self.short is not None:
            return speed / torch.tensor(self.short, dtype=speed.dtype, device=speed.device)
        assert self.factor is not None
        kept = _KEPT[self.kind](self, speed, theta)
        return speed * kept + speed / self.factor * (1.0 - kept)

    def scaled_by_length(self, speed: Tensor, theta: float, lengths: Tensor) -> Tensor:
        """Return the same for texts of `lengths` (..., 1) tokens: (..., pairs)."""
        assert self.trained is not None
        if self.long is not None:
            far = speed / torch.tensor(self.long, dtype=speed.dtype, device=speed.device)
            return torch.where(lengths > self.trained, far, self.scaled(speed, theta))
        assert self.factor is not None
        longer = 1.0 + self.factor * (lengths.clamp(min=self.trained) / self.trained - 1.0).to(speed.dtype)
        pairs = speed.shape[0]
        share = torch.arange(pairs, dtype=speed.dtype, device=speed.device) / (pairs - 1)
        return speed * longer**-share


def _none(scaling: Scaling, speed: Tensor, theta: float) -> Tensor:
    """Keep nothing: all pairs are slowed in full."""
    return torch.zeros_like(speed)


def _by_turns(scaling: Scaling, speed: Tensor, theta: float) -> Tensor:
    """Keep what turns often within `trained` tokens."""
    assert scaling.trained is not None
    low, high = scaling.turns
    return ((speed * (scaling.trained / (2 * math.pi)) - low) / (high - low)).clamp(0.0, 1.0)


def _by_place(scaling: Scaling, speed: Tensor, theta: float) -> Tensor:
    """Keep the first pairs: from the place where pairs turn `fast` times to that of `slow` it falls evenly."""
    assert scaling.trained is not None
    pairs, trained = speed.shape[0], scaling.trained
    slow, fast = (pairs * math.log(trained / (turns * 2 * math.pi)) / math.log(theta) for turns in scaling.turns)
    if scaling.truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    start, end = max(fast, 0), min(slow, 2 * pairs - 1)
    place = torch.arange(pairs, dtype=speed.dtype, device=speed.device)
    return 1.0 - ((place - start) / (end - start or 0.001)).clamp(0.0, 1.0)


_KEPT: Mapping[str, Callable[[Scaling, Tensor, float], Tensor]] = {
    "linear": _none,
    "llama3": _by_turns,
    "yarn": _by_place,
}
"""By kind: the share of its speed that each pair keeps, (pairs,)."""
