"""A gated moving average, as a mixer with a state of fixed size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.core import Context, Declaration, Linear, Mixer, Remembered, Site


class NewAttention(Mixer):
    """Average each channel over the past with a decay of its own, and gate it (after Ma et al. 2023, "Mega").

    h_t = a h_{t-1} + (1 - a) v_t with a learned a in (0, 1) for each channel, and y_t = out(h_t * silu(g_t)).
    """

    # Each ability stands in `can`, in `ignores` (harmless, of no effect) or in `lacks`, with a clause that says why.
    # The exponents of its cost against length, `time` and `memory`, are 1 unless given. The suite proves all of it.
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "documents", "compile"}),
        ignores=frozenset({"rotate"}),
        lacks={
            "two_sided": "its average runs forwards, and what comes later never enters it",
            "cross": "it reads one sequence in order, and has no queries to put to a memory",
            "score": "it keeps one average, and no pair of tokens ever has a score",
        },
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """half_life: tokens after which the slowest channel holds half of a value, at the start; the fastest 1."""

        half_life: float = 64.0

        def __post_init__(self) -> None:
            if self.half_life < 1.0:
                raise ValueError(f"half_life: {self.half_life} tokens is too short; at least 1")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.up = Linear(site.d_model, 2 * site.d_model)
        self.decay = nn.Parameter(torch.empty(site.d_model))  # a = sigmoid(decay)
        self.out = Linear(site.d_model, site.d_model, gain=(2 * site.n_layers) ** -0.5)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Spread the half-lives evenly in their logarithm; a module fills here what it owns itself."""
        lives = self.config.half_life ** torch.linspace(0.0, 1.0, self.site.d_model)
        self.decay.copy_(torch.logit(0.5 ** (1.0 / lives)))

    def declared(self) -> dict[str, Remembered]:
        """Keep the average, at least in fp32: decoding, export and the memory estimate follow from this alone."""
        return {"average": Remembered(("batch", self.site.d_model), "fixed", "accumulate")}

    def forward(
        self, x: Tensor, context: Context, state: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Change x (B, T, C) by doubling: after k rounds each token has the sum over the 2^k before it."""
        h, gate, log_a = self._read(x)
        # A graph is made for any length, so it takes the rounds of the longest.
        length = self.site.max_seq_len if torch.compiler.is_compiling() else x.shape[1]
        reach = 1
        while reach < length:
            earlier = F.pad(h, (0, 0, reach, 0))[:, : x.shape[1]]
            if context.tokens.doc is not None:  # no token reaches back beyond the start of its document
                earlier = earlier.masked_fill((context.tokens.pos < reach).unsqueeze(-1), 0.0)
            h = h + torch.exp(reach * log_a) * earlier
            reach *= 2
        if state is not None:
            age = torch.arange(1, x.shape[1] + 1, device=x.device).unsqueeze(-1)
            h = h + torch.exp(age * log_a) * state["average"].unsqueeze(1)
            state = {"average": _last(torch.cat([state["average"].unsqueeze(1), h], dim=1), context.length)}
        return self.out(h.to(gate.dtype) * F.silu(gate)), state

    def reference(
        self, x: Tensor, context: Context, state: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Compute the same token by token; real tokens stand first in a row, padding behind them."""
        new, gate, log_a = self._read(x)
        tokens = context.tokens
        average = new.new_zeros(new.shape[0], new.shape[2]) if state is None else state["average"]
        averages = [average]
        for t in range(x.shape[1]):
            if tokens.doc is not None:
                average = average.masked_fill((tokens.pos[:, t] == 0).unsqueeze(-1), 0.0)
            average = torch.exp(log_a) * average + new[:, t]
            averages.append(average)
        h = torch.stack(averages, dim=1)
        after = None if state is None else {"average": _last(h, context.length)}
        return self.out(h[:, 1:].to(gate.dtype) * F.silu(gate)), after

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (1 - a) v (B, T, C), in fp32 at least, the gate's input (B, T, C) and log a (C,)."""
        values, gate = self.up(x).chunk(2, dim=-1)
        wide = torch.promote_types(values.dtype, torch.float32)
        log_a = F.logsigmoid(self.decay.to(wide))
        return -torch.expm1(log_a) * values.to(wide), gate, log_a


def _last(h: Tensor, length: Tensor | None) -> Tensor:
    """Return what stands after the last of `length` (B,) real tokens (None: all), (B, C), for h (B, 1 + T, C)."""
    if length is None:
        return h[:, -1]
    return h.gather(1, length[:, None, None].expand(-1, 1, h.shape[2])).squeeze(1)
