"""A structured state space whose steps depend on the tokens, as a mixer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import fla, stretched
from ...core.activation import activate
from ...core.activation_names import Activation
from ...core.attention import Declaration, Mixer, is_exporting
from ...core.component import Site
from ...core.context import Context
from ...core.decay import draw_steps
from ...core.fading import CHUNK, Sums, by_operator, fastest, token_by_token
from ...core.gated_norm import GatedNorm
from ...core.linear import Linear, at_least_fp32, exactly
from ...core.moves import Layouts, Move, Reshape, Take
from ...core.short_conv import ShortConv
from ...core.state import Declared, Memories, Remembered


class StateSpaceAttention(Mixer):
    """Carry a decaying sum of outer products in each head, and read it by the token itself (Dao and Gu 2024).

    A map of x and a short convolution give inputs u, keys b, queries c and steps dt: h_t = exp(-dt A) h_(t-1) +
    dt u_t b_t^T, and y_t = h_t c_t + D u_t. Heads of a group share b and c. A gated norm and a map back follow.
    """

    lowers: ClassVar[Mapping[str, str]] = {"ort": "as_operator"}
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "documents", "compile"}),
        ignores=frozenset({"rotate"}),
        lacks={
            "two_sided": "its state runs from the first token to the last, and what comes later never enters it",
            "score": "it sums outer products before any query meets them, so that there is no score to add a bias to",
            "cross": "it reads one sequence in order, and has no queries to put to a memory",
            "pairs": "it reads tokens in the order of their columns, and knows no other",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 6, "d_state": 10},
        {"n_heads": 4, "head_dim": 7, "d_state": 5, "n_groups": 2, "kernel": 3, "bias": True, "conv_bias": False},
        {"n_heads": 6, "d_state": 9, "n_groups": 3, "step_limit": (0.3, 1.1), "norm_before_gate": True},
        {"n_heads": 3, "d_state": 4, "kernel": 1, "expand": 1, "activation": "gelu"},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """n_heads: heads, each with a decay of its own. head_dim: width of a head.

        expand: n_heads * head_dim over d_model, 2 where head_dim is left out as well. d_state: numbers that a head
        keeps for each of its entries. n_groups: of heads that share keys and queries. kernel: tokens that the
        convolution covers. activation: of what it gives. bias: on the maps in and out. conv_bias: on the convolution.
        step_limit: the least and the largest step, null for none. norm_before_gate: whether the gate comes after the
        norm. eps: of the norm.
        """

        n_heads: int
        head_dim: int | None = None
        expand: int | None = None
        d_state: int = 128
        n_groups: int = 1
        kernel: int = 4
        activation: Activation = "silu"
        bias: bool = False
        conv_bias: bool = True
        step_limit: tuple[float | None, float | None] = (None, None)
        norm_before_gate: bool = False
        eps: float = 1e-5

        def __post_init__(self) -> None:
            for name in ("n_heads", "head_dim", "expand", "d_state", "n_groups", "kernel"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name}: must be at least 1, not {value}")
            if self.n_heads % self.n_groups:
                raise ValueError(f"n_groups: {self.n_groups} groups do not divide {self.n_heads} heads evenly")
            low, high = self.step_limit
            if (low is not None and low < 0.0) or (high is not None and high <= (low or 0.0)):
                raise ValueError(f"step_limit: from {low} to {high} is no range of steps, which are above 0")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.head_dim = _head_dim(config, site.d_model)
        self.width, self.keys = config.n_heads * self.head_dim, config.n_groups * config.d_state
        self.up = Linear(site.d_model, 2 * self.width + 2 * self.keys + config.n_heads, bias=config.bias)
        self.conv = ShortConv(self.width + 2 * self.keys, config.kernel, bias=config.conv_bias)
        self.step_bias = nn.Parameter(torch.empty(config.n_heads))
        self.a_log = nn.Parameter(torch.empty(config.n_heads))
        self.skip = nn.Parameter(torch.empty(config.n_heads))
        self.norm = GatedNorm(
            self.width, self.width // config.n_groups, eps=config.eps, gate_first=not config.norm_before_gate
        )
        self.out = Linear(self.width, site.d_model, bias=config.bias, gain=(2 * site.n_layers) ** -0.5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw steps and decays so that heads remember ten to a thousand tokens; the skip starts at 1."""
        draw_steps(self.step_bias, self.a_log)
        nn.init.ones_(self.skip)

    def layouts(self) -> Layouts:
        """Publish `plain`: in_proj, conv1d, dt_bias, A_log, D, norm, out_proj."""
        names = {"step_bias": "dt_bias", "a_log": "A_log", "skip": "D", "conv.bias": "conv1d.bias"}
        names |= {f"up.{kind}": f"in_proj.{kind}" for kind in ("weight", "bias")}
        names |= {f"out.{kind}": f"out_proj.{kind}" for kind in ("weight", "bias")}
        shape = tuple(self.conv.weight.shape)
        moves: dict[str, Move] = {own: Take(name) for own, name in names.items() if own in self.state_dict()}
        moves["conv.weight"] = Reshape(Take("conv1d.weight"), (shape[0], 1, shape[1]), shape)
        return {"plain": moves}

    def declared(self) -> Declared:
        """Keep what the convolution reaches, and the states of all heads, at least in fp32."""
        shape = ("batch", self.config.n_heads, self.config.d_state, self.head_dim)
        return {**self.conv.declared(), "sums": Remembered(shape, "fixed", "accumulate")}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Sum in chunks, on CUDA by flash-linear-attention's kernels; one token of a step at once."""
        return self._mixed(x, context, state, self.conv.forward, fastest(x, context), self.norm)

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Sum token by token."""
        return self._mixed(x, context, state, self.conv.reference, token_by_token, self.norm.reference)

    def as_operator(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Leave the sums to ONNX Runtime's LinearAttention, for which one token is one step and no chunk."""
        if not is_exporting() or context.tokens.doc is not None:
            return StateSpaceAttention.forward(self, x, context, state)
        return self._mixed(x, context, state, self.conv.forward, by_operator, self.norm)

    def path(self, tokens: int) -> str:
        """Name the path."""
        return stretched.path(CHUNK)

    def on_cuda(self) -> str:
        """Name the kernels that are there, or say why they are not."""
        return f"the same: {why}" if (why := fla.missing()) else "flash-linear-attention's simple_gla"

    def in_one_graph(self) -> bool:
        """Say whether torch.compile can take it all: not the kernels."""
        return not fla.there()

    def _mixed(
        self,
        x: Tensor,
        context: Context,
        state: Memories | None,
        convolve: Callable[..., tuple[Tensor, Memories]],
        sums: Sums,
        norm: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Memories | None]:
        config, valid = self.config, context.tokens.valid
        gate, mixed, steps = self.up(x).split((self.width, self.width + 2 * self.keys, config.n_heads), dim=-1)
        mixed, near = convolve(at_least_fp32(mixed), context, state)
        mixed = activate(config.activation, mixed)
        u, b, c = mixed.split((self.width, self.keys, self.keys), dim=-1)
        u, b, c = u.unflatten(-1, (-1, self.head_dim)), _grouped(b, config), _grouped(c, config)
        dt = F.softplus(at_least_fp32(steps) + at_least_fp32(self.step_bias))
        if config.step_limit != (None, None):
            dt = dt.clamp(*config.step_limit)
        if valid is not None:  # padding adds nothing, and nothing fades over it
            dt = dt.masked_fill(~valid.unsqueeze(-1), 0.0)
        first = u.new_zeros(x.shape[0], config.n_heads, config.d_state, self.head_dim)
        with exactly(x):
            y, last = sums(
                c, b, u * dt.unsqueeze(-1), -dt * at_least_fp32(self.a_log).exp(),
                first if state is None else state["sums"], context.tokens.doc,
            )  # fmt: skip
        y = y + u * at_least_fp32(self.skip).unsqueeze(-1)
        out = self.out(norm(y.flatten(-2), gate).to(x.dtype))
        return out, None if state is None else {**near, "sums": last}


def _head_dim(config: StateSpaceAttention.Config, d_model: int) -> int:
    """Return the width of a head."""
    width = (config.expand or 2) * d_model
    if config.head_dim is not None:
        if config.expand is not None and config.n_heads * config.head_dim != width:
            raise ValueError(
                f"head_dim: {config.n_heads} heads of {config.head_dim} are not {config.expand} times d_model "
                f"{d_model}; leave expand or head_dim out"
            )
        return config.head_dim
    if width % config.n_heads:
        raise ValueError(f"n_heads: {config.n_heads} heads do not divide {width} evenly; set head_dim, or n_heads")
    return width // config.n_heads


def _grouped(x: Tensor, config: StateSpaceAttention.Config) -> Tensor:
    grouped: Tensor = x.unflatten(-1, (config.n_groups, config.d_state))
    return grouped
