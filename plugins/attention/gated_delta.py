"""The gated delta rule, as a mixer: what a key stood for is replaced, and all of it fades."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import fla
from ...core.activation import activate
from ...core.activation_names import Activation
from ...core.attention import Declaration, Mixer, is_exporting
from ...core.component import Site
from ...core.context import Context
from ...core.decay import Decays, carried, cut, draw_steps, joined, size_of_chunks
from ...core.gated_norm import GatedNorm
from ...core.linear import Linear, at_least_fp32, computed_in, exactly
from ...core.moves import Concat, Heads, Layouts, Move, Reshape, Take
from ...core.short_conv import ShortConv
from ...core.state import Declared, Memories, Remembered
from ...core.summed import linear_attention

CHUNKS = (32, 64, 4096)
"""Tokens a chunk below some length, and from it on."""
NORM_EPS = 1e-6
"""Added to the squared length of queries and keys."""


class GatedDeltaAttention(Mixer):
    """Keep in each head a map from keys to values, corrected by each token (Yang, Kautz and Hatamizadeh 2025).

    A map of x and a short convolution give queries q and keys k of length 1, and values v; two more maps how much is
    corrected, b, and how much is left, a: S_t = a_t S_(t-1) + b_t k_t (v_t - a_t S_(t-1)^T k_t)^T, and y_t = S_t^T q_t
    / sqrt(D). Heads of a group share q and k. A gated norm of each head and a map back follow.
    """

    lowers: ClassVar[Mapping[str, str]] = {"ort": "as_operator"}
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "documents", "compile"}),
        ignores=frozenset({"rotate"}),
        lacks={
            "two_sided": "its state runs from the first token to the last, and what comes later never enters it",
            "score": "each token corrects what earlier ones left, and no pair of tokens ever has a score",
            "cross": "it reads one sequence in order, and has no queries to put to a memory",
            "pairs": "it reads tokens in the order of their columns, and knows no other",
        },
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 2, "head_dim": 24},
        {"n_heads": 6, "n_key_heads": 2, "head_dim": 11, "key_dim": 5, "kernel": 3},
        {"n_heads": 2, "n_key_heads": 1, "head_dim": 20, "kernel": 1, "activation": "gelu", "norm_before_gate": False},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """n_heads: heads, each with a map of its own. head_dim: width of a head's values (d_model / n_heads).

        n_key_heads: heads of queries and keys, each shared by a group of heads (all, when left out). key_dim: width of
        queries and keys (head_dim). kernel: tokens that the convolution covers. activation: of what it gives.
        norm_before_gate: whether the gate comes after the norm. eps: of the norm.
        """

        n_heads: int
        head_dim: int | None = None
        n_key_heads: int | None = None
        key_dim: int | None = None
        kernel: int = 4
        activation: Activation = "silu"
        norm_before_gate: bool = True
        eps: float = 1e-6

        def __post_init__(self) -> None:
            for name in ("n_heads", "head_dim", "n_key_heads", "key_dim", "kernel"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name}: must be at least 1, not {value}")
            if self.n_key_heads is not None and self.n_heads % self.n_key_heads:
                raise ValueError(f"n_key_heads: {self.n_key_heads} do not divide {self.n_heads} heads evenly")

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if config.head_dim is None and site.d_model % config.n_heads:
            raise ValueError(
                f"n_heads: {config.n_heads} heads do not divide d_model {site.d_model}; set head_dim, or n_heads"
            )
        self.head_dim = config.head_dim or site.d_model // config.n_heads
        self.key_dim = config.key_dim or self.head_dim
        self.key_heads = config.n_key_heads or config.n_heads
        self.keys, self.width = self.key_heads * self.key_dim, config.n_heads * self.head_dim
        self.up = Linear(site.d_model, 2 * self.keys + 2 * self.width + 2 * config.n_heads)
        self.conv = ShortConv(2 * self.keys + self.width, config.kernel)
        self.step_bias = nn.Parameter(torch.empty(config.n_heads))
        self.a_log = nn.Parameter(torch.empty(config.n_heads))
        self.norm = GatedNorm(self.head_dim, self.head_dim, eps=config.eps, gate_first=not config.norm_before_gate)
        self.out = Linear(self.width, site.d_model, gain=(2 * site.n_layers) ** -0.5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw steps and decays so that heads remember ten to a thousand tokens."""
        draw_steps(self.step_bias, self.a_log)

    def layouts(self) -> Layouts:
        """Publish `grouped`: in_proj_qkvz and in_proj_ba, each key head in turn; conv1d, dt_bias, A_log, out_proj."""
        group = self.config.n_heads // self.key_heads
        wide = (self.key_dim, self.key_dim, group * self.head_dim, group * self.head_dim)
        rows = 2 * self.keys + 2 * self.width, 2 * self.config.n_heads
        shape = tuple(self.conv.weight.shape)
        maps = (
            Heads(Take("in_proj_qkvz.weight"), self.key_heads, wide),
            Heads(Take("in_proj_ba.weight"), self.key_heads, (group, group)),
        )
        moves: dict[str, Move] = {
            "up.weight": Concat(maps, rows),
            "conv.weight": Reshape(Take("conv1d.weight"), (shape[0], 1, shape[1]), shape),
            "step_bias": Take("dt_bias"),
            "a_log": Take("A_log"),
            "out.weight": Take("out_proj.weight"),
        }
        return {"grouped": moves}

    def declared(self) -> Declared:
        """Keep what the convolution reaches, and the maps of all heads, at least in fp32."""
        shape = ("batch", self.config.n_heads, self.key_dim, self.head_dim)
        return {**self.conv.declared(), "map": Remembered(shape, "fixed", "accumulate")}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Correct in chunks, on CUDA by flash-linear-attention's kernels; one token of a step at once."""
        one = x.shape[1] == 1 and context.tokens.doc is None and not is_exporting()
        chunked = partial(by_kernel, half=computed_in(x)) if fla.takes(x, context.tokens.doc) else in_chunks
        return self._mixed(x, context, state, self.conv.forward, token_by_token if one else chunked, self.norm)

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Correct token by token."""
        return self._mixed(x, context, state, self.conv.reference, token_by_token, self.norm.reference)

    def as_operator(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Leave the corrections to ONNX Runtime's LinearAttention, for which one token is one step and no chunk."""
        if not is_exporting() or context.tokens.doc is not None:
            return GatedDeltaAttention.forward(self, x, context, state)
        return self._mixed(x, context, state, self.conv.forward, by_operator, self.norm)

    def path(self, tokens: int) -> str:
        """Name the path."""
        return f"chunks of {_chunk(tokens)}"

    def on_cuda(self) -> str:
        """Name the kernels that are there, or say why they are not."""
        return f"the same: {why}" if (why := fla.missing()) else "flash-linear-attention's gated_delta_rule"

    def in_one_graph(self) -> bool:
        """Say whether torch.compile can take it all: not the kernels."""
        return not fla.there()

    def _mixed(
        self,
        x: Tensor,
        context: Context,
        state: Memories | None,
        convolve: Callable[..., tuple[Tensor, Memories]],
        corrected: Callable[..., tuple[Tensor, Tensor]],
        norm: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Memories | None]:
        heads, valid = self.config.n_heads, context.tokens.valid
        mixed, gate, share, steps = self.up(x).split((2 * self.keys + self.width, self.width, heads, heads), dim=-1)
        mixed, near = convolve(at_least_fp32(mixed), context, state)
        mixed = activate(self.config.activation, mixed)
        q, k, v = mixed.split((self.keys, self.keys, self.width), dim=-1)
        q, k, v = (t.unflatten(-1, (-1, d)) for t, d in ((q, self.key_dim), (k, self.key_dim), (v, self.head_dim)))
        q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + NORM_EPS) for t in (q, k))
        share = torch.sigmoid(at_least_fp32(share))
        log_decay = -at_least_fp32(self.a_log).exp() * F.softplus(at_least_fp32(steps) + at_least_fp32(self.step_bias))
        if valid is not None:  # padding corrects nothing, and nothing fades over it
            share, log_decay = (t.masked_fill(~valid.unsqueeze(-1), 0.0) for t in (share, log_decay))
        first = v.new_zeros(x.shape[0], heads, self.key_dim, self.head_dim) if state is None else state["map"]
        with exactly(x):
            y, last = corrected(q * self.key_dim**-0.5, k, v, log_decay, share, first, context.tokens.doc)
        y = norm(y, gate.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        return self.out(y.to(x.dtype)), None if state is None else {**near, "map": last}


def token_by_token(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, share: Tensor, first: Tensor, doc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return y_t = S_t^T q_t, (B, T, H, E), and the last S (B, H, D, E), of the class's S_t.

    q, k (B, T, K, D); v (B, T, H, E); log_decay and share (B, T, H); `first` is the map before the first token; `doc`
    (B, T) keeps documents apart.
    """
    shared = v.shape[2] // k.shape[2]
    q, k = (t.repeat_interleave(shared, dim=2) for t in (q, k))
    decay, s, found = log_decay.exp(), first, []
    for t in range(v.shape[1]):
        if doc is not None and t:
            s = s * (doc[:, t] == doc[:, t - 1])[:, None, None, None]
        s = s * decay[:, t, :, None, None]
        missing = v[:, t] - (k[:, t].unsqueeze(-2) @ s).squeeze(-2)
        s = s + k[:, t].unsqueeze(-1) * (share[:, t].unsqueeze(-1) * missing).unsqueeze(-2)
        found.append((q[:, t].unsqueeze(-2) @ s).squeeze(-2))
    return torch.stack(found, dim=1) if found else v, s


def by_kernel(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, share: Tensor, first: Tensor, doc: Tensor | None,
    *, half: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute `token_by_token` of one document a row on CUDA, products in `half`."""
    assert doc is None
    y, last = fla.corrected_sums(q, k, v, log_decay, share, first, half)
    return y.to(v.dtype), last.to(first.dtype)


def by_operator(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, share: Tensor, first: Tensor, doc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `token_by_token` of one document a row by one operator of a graph that is being exported."""
    assert doc is None
    return linear_attention(q, k, v, first, log_decay=log_decay, share=share)


def in_chunks(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, share: Tensor, first: Tensor, doc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `token_by_token` with products of matrices (Yang et al. 2024, Parallelizing linear transformers).

    Within a chunk all corrections follow from one triangular system, once for values and once for what is carried in.
    """
    length, groups = v.shape[1], k.shape[2]
    size = size_of_chunks(_chunk(length), length)
    decays = Decays.of(log_decay, size, doc)
    # In order once: products of what lies across the heads would copy it again, each for itself.
    q, k, v, share = (cut(t, size).contiguous() for t in (q, k, v, share.unsqueeze(-1)))
    shared = v.shape[2] // groups

    def to_heads(t: Tensor) -> Tensor:
        return t if shared == 1 else t.repeat_interleave(shared, dim=2)

    overlaps, scores, k, q = to_heads(k @ k.mT), to_heads(q @ k.mT), to_heads(k), to_heads(q)
    new, seen = _solved(overlaps * decays.within * share, v * share, k * (decays.into * share))
    last, (before, written) = carried(_corrected, first, (new, seen, (k * decays.onward).mT, decays.across))
    return joined((q * decays.into) @ before + (scores * decays.within) @ written, length), last


def _chunk(length: int) -> int:
    if torch.compiler.is_compiling():
        return CHUNKS[0]
    return CHUNKS[0] if length < CHUNKS[2] else CHUNKS[1]


def _corrected(s: Tensor, new: Tensor, seen: Tensor, keys: Tensor, across: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    written = new - seen @ s
    return s * across + keys @ written, (s, written)


def _solved(lower: Tensor, *wanted: Tensor) -> list[Tensor]:
    """Return each x of (I + what of `lower` (..., L, L) is below its diagonal) x = wanted (..., L, D)."""
    if not is_exporting():
        # Turned over, as the library stores matrices, it copies none; side by side they would be copied first.
        upper = lower.mT
        return [
            torch.linalg.solve_triangular(upper, x.mT, upper=True, left=False, unitriangular=True).mT for x in wanted
        ]
    # Runtimes know no triangular systems. The inverse of blocks of twice the size follows from that of both halves.
    size = lower.shape[-1]
    row = torch.arange(size, device=lower.device)
    inverse = torch.eye(size, dtype=lower.dtype, device=lower.device).expand_as(lower)
    half = 1
    while half < CHUNKS[0]:
        block = row // half
        joins = (block.unsqueeze(1) == block + 1) & (block % 2 == 0)
        inverse = inverse - inverse @ (lower * joins) @ inverse
        half *= 2
    return [inverse @ x for x in wanted]
