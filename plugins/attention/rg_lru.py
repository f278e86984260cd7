"""The recurrent block of Griffin: a short convolution, and a sum that decays as the tokens say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.activation import activate
from ...core.activation_names import Activation
from ...core.attention import Declaration, Mixer
from ...core.component import Site
from ...core.context import Context
from ...core.linear import Linear, at_least_fp32
from ...core.moves import Concat, Layouts, Move, Reshape, Take
from ...core.scan import decaying_sums, last_real
from ...core.short_conv import ShortConv
from ...core.state import Declared, Memories, Remembered

POWER = 8.0


class RgLruAttention(Mixer):
    """Carry a decaying sum of gated inputs from token to token, gated by a second branch (De et al. 2024, section 2).

    With u the convolution of W_u x, r and i sigmoids of maps of u in blocks, and a = e^(-8 r softplus(decay)), the sum
    is h_t = a_t h_(t-1) + sqrt(1 - a_t^2) i_t u_t; a text's first token has h = i u. W_o (act(W_g x) * h) comes out.
    """

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "documents", "compile"}),
        ignores=frozenset({"rotate"}),
        lacks={
            "two_sided": "its convolution and its sum hold what came before, and a sum of what comes is another layer",
            "score": "it carries one sum from token to token, and no pair of tokens ever has a score",
            "cross": "it reads one sequence in order, and has no queries to put to a memory",
            "pairs": "it reads tokens in the order of their columns, and knows no other",
        },
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """d_hidden: width of what is carried (d_model when left out). kernel: tokens that the convolution covers.

        n_heads: blocks of as many channels, each of which makes its gates of its own. activation: of the second branch.
        """

        d_hidden: int | None = None
        n_heads: int = 1
        kernel: int = 4
        activation: Activation = "gelu"

        def __post_init__(self) -> None:
            if self.d_hidden is not None and self.d_hidden < 1:
                raise ValueError(f"d_hidden: {self.d_hidden} is not a width; at least 1")
            if self.n_heads < 1:
                raise ValueError(f"n_heads: {self.n_heads} is not a number of blocks; at least 1")
            if self.kernel < 1:
                raise ValueError(f"kernel: {self.kernel} covers no token; at least 1, the token itself")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.width = config.d_hidden or site.d_model
        if self.width % config.n_heads:
            raise ValueError(f"n_heads: {config.n_heads} blocks do not divide {self.width} channels evenly")
        block = self.width // config.n_heads
        self.up = Linear(site.d_model, 2 * self.width, bias=True)
        self.conv = ShortConv(self.width, config.kernel, bias=True)
        self.gates = nn.Parameter(torch.empty(config.n_heads, block, 2 * block))
        self.gates_bias = nn.Parameter(torch.empty(config.n_heads, 2 * block))
        self.decay = nn.Parameter(torch.empty(self.width))
        self.out = Linear(self.width, site.d_model, bias=True, gain=(2 * site.n_layers) ** -0.5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw decays so that e^(-8 softplus(decay)) is uniform in [0.9, 0.999]: memories of ten to 1000 tokens."""
        nn.init.normal_(self.gates, std=self.gates.shape[1] ** -0.5)
        nn.init.zeros_(self.gates_bias)
        nn.init.uniform_(self.decay, 0.9, 0.999)
        with torch.no_grad():
            self.decay.log_().div_(-POWER).expm1_().log_()

    def layouts(self) -> Layouts:
        """Publish `plain`: linear_x, linear_y, conv_1d, linear_out, and rg_lru with a gate for each of r and i."""
        block, kernel = self.gates.shape[1], self.conv.weight.shape[1]
        r, i = (f"rg_lru.{name}_gate" for name in ("recurrent", "input"))
        moves: dict[str, Move] = {
            "conv.weight": Reshape(Take("conv_1d.weight"), (self.width, 1, kernel), (self.width, kernel)),
            "conv.bias": Take("conv_1d.bias"),
            "gates": Concat((Take(f"{r}_weight"), Take(f"{i}_weight")), (block, block), dim=2),
            "gates_bias": Concat((Take(f"{r}_bias"), Take(f"{i}_bias")), (block, block), dim=1),
            "decay": Take("rg_lru.recurrent_param"),
        }
        for kind in ("weight", "bias"):
            both = Take(f"linear_x.{kind}"), Take(f"linear_y.{kind}")
            moves |= {f"up.{kind}": Concat(both, (self.width,) * 2), f"out.{kind}": Take(f"linear_out.{kind}")}
        return {"plain": moves}

    def declared(self) -> Declared:
        """Keep the sum, at least in fp32, and what the convolution reaches back to."""
        return {"h": Remembered(("batch", self.width), "fixed", "accumulate"), **self.conv.declared()}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Sum over x (B, T, C) by a scan over all tokens at once."""
        return self._mixed(decaying_sums, self.conv, x, context, state)

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Sum over x (B, T, C) token by token."""
        return self._mixed(_stepping, self.conv.reference, x, context, state)

    def path(self, tokens: int) -> str:
        """Name the path."""
        return "scan in blocks"

    def _mixed(
        self,
        sums: Callable[[Tensor, Tensor, Tensor, int], Tensor],
        conv: Callable[..., tuple[Tensor, Memories]],
        x: Tensor,
        context: Context,
        state: Memories | None,
    ) -> tuple[Tensor, Memories | None]:
        u, branch = self.up(x).chunk(2, dim=-1)
        u, near = conv(u, context, state)
        a, b = self._terms(u, context)
        before = b.new_zeros(b.shape[0], self.width) if state is None else state["h"]
        h = sums(a, b, before, self.site.max_seq_len)
        y = self.out(activate(self.config.activation, branch) * h.to(branch.dtype))
        if state is None:
            return y, None
        return y, {"h": last_real(torch.cat([before.unsqueeze(1), h], dim=1), context), **near}

    def _terms(self, u: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return a and b of h_t = a_t h_(t-1) + b_t, (B, T, width), for u (B, T, width), at least in fp32."""
        # Blocks first: a product for each, which reads its matrix as it lies.
        blocks = u.to(self.gates.dtype).unflatten(-1, (self.config.n_heads, -1)).flatten(0, 1).transpose(0, 1)
        gates = at_least_fp32((blocks @ self.gates).transpose(0, 1).unflatten(0, u.shape[:2]) + self.gates_bias)
        r, i = (torch.sigmoid(gate.flatten(-2)) for gate in gates.chunk(2, dim=-1))
        log_a = -POWER * r * F.softplus(self.decay.to(r.dtype))
        # 1 - a^2 without cancellation; where it is 0, its root has no gradient.
        rest = (-torch.expm1(2 * log_a)).clamp(min=torch.finfo(r.dtype).tiny).sqrt()
        first = context.begins.unsqueeze(-1)
        return log_a.exp().masked_fill(first, 0.0), rest.masked_fill(first, 1.0) * i * u.to(r.dtype)


def _stepping(a: Tensor, b: Tensor, h: Tensor, longest: int) -> Tensor:
    """Return h_t = a_t h_(t-1) + b_t, (B, T, C), from h (B, C), step by step."""
    found = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        found.append(h)
    return torch.stack(found, dim=1) if found else b
