"""The time mixing of RWKV: a weighted mean over what came before, as a recurrence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.attention import Declaration, Mixer
from ...core.component import Site
from ...core.context import Context
from ...core.linear import Linear, at_least_fp32
from ...core.moves import Layouts, Move, Reshape, Take
from ...core.scan import decaying_sums, falling_peaks, last_real
from ...core.shift import mixed, shifted
from ...core.state import Declared, Memories, Remembered, accumulation_dtype

LOWEST = -1e38
"""The logarithm of nothing, where an infinity would give inf - inf."""


class RwkvAttention(Mixer):
    """Average values with weights that fall with distance, and gate the mean by a sigmoid (Peng et al. 2023, RWKV-4).

    With k, v and r each made of its own mix of x_t and x_(t-1), channel by channel: value i weighs e^(k_i - (t-1-i) w)
    in the mean at t > i, and e^(k_t + u) at t = i, for w = e^decay and u = `first`. Out comes W_o (sigmoid(r) * mean).
    """

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "documents", "compile"}),
        ignores=frozenset({"rotate"}),
        lacks={
            "two_sided": "its weights fall with the tokens since a key, and those of keys still to come would rise",
            "score": "it carries two sums from token to token, and no pair of tokens ever has a score",
            "cross": "it reads one sequence in order, and has no queries to put to a memory",
            "pairs": "it reads tokens in the order of their columns, and knows no other",
        },
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """d_hidden: width of what is carried (d_model when left out)."""

        d_hidden: int | None = None

        def __post_init__(self) -> None:
            if self.d_hidden is not None and self.d_hidden < 1:
                raise ValueError(f"d_hidden: {self.d_hidden} is not a width; at least 1")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.width = config.d_hidden or site.d_model
        self.decay = nn.Parameter(torch.empty(self.width))
        self.first = nn.Parameter(torch.empty(self.width))
        self.mix_key = nn.Parameter(torch.empty(site.d_model))
        self.mix_value = nn.Parameter(torch.empty(site.d_model))
        self.mix_receptance = nn.Parameter(torch.empty(site.d_model))
        self.key = Linear(site.d_model, self.width)
        self.value = Linear(site.d_model, self.width)
        self.receptance = Linear(site.d_model, self.width)
        self.out = Linear(self.width, site.d_model, gain=(2 * site.n_layers) ** -0.5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the paper does (appendix E): from memories of hundreds of tokens to none, channel by channel."""
        site, rank = self.site, torch.arange(self.width)
        depth, left = (site.layer - 1) / max(site.n_layers - 1, 1), 1 - (site.layer - 1) / site.n_layers
        share = (torch.arange(site.d_model) / site.d_model) ** left
        with torch.no_grad():
            self.decay.copy_(-5 + 8 * (rank / max(self.width - 1, 1)) ** (0.7 + 1.3 * depth))
            self.first.copy_(((rank + 1) % 3 - 1) * 0.5 + math.log(0.3))
            self.mix_key.copy_(share)
            self.mix_value.copy_(share + 0.3 * depth)
            self.mix_receptance.copy_(share**0.5)

    def layouts(self) -> Layouts:
        """Publish `plain`: time_decay, time_first, time_mix_key and its like (1, 1, C), key and its like, output."""
        size = self.site.d_model
        moves: dict[str, Move] = {n: Take(f"time_{n}") for n in ("decay", "first")}
        for part in ("key", "value", "receptance"):
            moves[f"mix_{part}"] = Reshape(Take(f"time_mix_{part}"), (1, 1, size), (size,))
        return {"plain": moves | {"out.weight": Take("output.weight")}}

    def declared(self) -> Declared:
        """Keep the newest token, and both sums over e^`peak`, the largest weight in them, at least in fp32."""
        sums = Remembered(("batch", 2, self.width), "fixed", "accumulate")
        peak = Remembered(("batch", self.width), "fixed", "accumulate", fill=LOWEST)
        return {"last": Remembered(("batch", self.site.d_model), "fixed"), "sums": sums, "peak": peak}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Mix x (B, T, C) by scans over all tokens at once, every weight over the largest so far: none overflows."""
        k, v, gate, last = self._read(x, context, state)
        empty = self._empty(k) if state is None else state
        fall = -self.decay.to(k.dtype).exp()[None, None]
        if context.tokens.doc is not None:  # nothing is left of one document in the next
            fall = torch.where(context.begins.unsqueeze(-1), LOWEST, fall)
        # Any peak near the largest weight gives the same means: it needs neither a gradient nor every digit.
        with torch.no_grad():
            peak = falling_peaks(fall.expand(-1, k.shape[1], -1), k, empty["peak"], self.site.max_seq_len)
            peaks = torch.cat([empty["peak"].unsqueeze(1), peak], dim=1)
        left, new = (peaks[:, :-1] + fall - peak).exp().unsqueeze(2), (k - peak).exp()
        added = torch.stack([new * v, new], dim=2)
        after = decaying_sums(left, added, empty["sums"], self.site.max_seq_len)
        sums, before = torch.cat([empty["sums"].unsqueeze(1), after], dim=1), peaks[:, :-1]
        if context.tokens.doc is not None:
            before = before.masked_fill(context.begins.unsqueeze(-1), LOWEST)
        mean = self._mean(sums[:, :-1], before, k, v)
        y = self.out(gate * mean.to(gate.dtype))
        if state is None:
            return y, None
        return y, {"last": last, "sums": last_real(sums, context), "peak": last_real(peaks, context)}

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Carry both sums token by token."""
        k, v, gate, last = self._read(x, context, state)
        carry = self._empty(k) if state is None else state
        sums, peak, doc, count = carry["sums"], carry["peak"], context.tokens.doc, context.length
        fall, means = -self.decay.to(k.dtype).exp(), []
        for t in range(x.shape[1]):
            if doc is not None and t:
                peak = torch.where((doc[:, t] == doc[:, t - 1])[:, None], peak, LOWEST)
            means.append(self._mean(sums, peak, k[:, t], v[:, t]))
            top = torch.maximum(peak + fall, k[:, t])
            left, new = (peak + fall - top).exp(), (k[:, t] - top).exp()
            after = left[:, None] * sums + torch.stack([new * v[:, t], new], dim=1)
            real = torch.ones_like(k[:, 0, 0], dtype=torch.bool) if count is None else t < count
            sums, peak = torch.where(real[:, None, None], after, sums), torch.where(real[:, None], top, peak)
        y = self.out(gate * (torch.stack(means, dim=1) if means else v).to(gate.dtype))
        return y, None if state is None else {"last": last, "sums": sums, "peak": peak}

    def path(self, tokens: int) -> str:
        """Name the path."""
        return "scans in blocks"

    def _read(self, x: Tensor, context: Context, state: Memories | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return keys and values (B, T, width), at least in fp32, gates (B, T, width) and the newest token (B, C)."""
        before, last = shifted(x, context, None if state is None else state["last"])
        k = self.key(mixed(x, before, self.mix_key))
        v = self.value(mixed(x, before, self.mix_value))
        gate = torch.sigmoid(self.receptance(mixed(x, before, self.mix_receptance)))
        return at_least_fp32(k), at_least_fp32(v), gate, last

    def _empty(self, k: Tensor) -> Memories:
        """Return the state before the first token, without the token."""
        zeros = k.new_zeros(k.shape[0], 2, self.width, dtype=accumulation_dtype(k.dtype))
        return {"sums": zeros, "peak": torch.full_like(zeros[:, 0], LOWEST)}

    def _mean(self, sums: Tensor, peak: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the weighted mean of what came before, sums (..., 2, width) over e^peak, and of the token itself."""
        own = k + self.first.to(k.dtype)
        top = torch.maximum(peak, own).detach()
        old, new = (peak - top).exp(), (own - top).exp()
        top_sum, bottom_sum = sums.unbind(-2)
        return (old * top_sum + new * v) / (old * bottom_sum + new)
