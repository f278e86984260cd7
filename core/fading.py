"""Sums of outer products that fade from token to token, each way there is to take them, and the mixers made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from . import fla, stretched
from .attention import Headed, Mixer, is_exporting
from .component import Site
from .context import Context
from .decay import Decays, carried, cut, joined, size_of_chunks
from .gated_norm import GatedNorm
from .linear import Linear, at_least_fp32, computed_in, exactly
from .state import Declared, Memories, Remembered
from .summed import linear_attention

CHUNK = 64
"""Tokens a chunk: within it scores are formed, across it the states are carried."""
FEW = 16
"""Tokens a chunk where each entry of a key fades by itself: every pair of a chunk's tokens has as many decays."""

Sums: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""`token_by_token`, or what computes the same."""


def fastest(x: Tensor, context: Context, *, by_entry: bool = False) -> Sums:
    """Return the fastest way to take sums for tokens x (B, T, C): in chunks, on CUDA by kernels; one token at once.

    `by_entry`: whether each entry of a key fades by itself.
    """
    doc = context.tokens.doc
    if x.shape[1] == 1 and doc is None and not is_exporting():
        return token_by_token
    if by_entry:
        return in_chunks_by_entry
    if stretched.takes(x) and doc is None:
        return in_stretches
    return partial(by_kernel, half=computed_in(x)) if fla.takes(x, doc) else in_chunks


def token_by_token(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, first: Tensor, doc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return y_t = q_t h_t, (B, T, H, E), and the last h, of h_t = exp(log_decay_t) h_(t-1) + k_t v_t, (B, H, D, E).

    q, k (B, T, G, D); v (B, T, H, E); log_decay (B, T, H), or (B, T, H, D) where each entry of a key fades by itself;
    `first` comes before the first token; `doc` (B, T) keeps documents apart.
    """
    shared = v.shape[2] // k.shape[2]
    q, k = (t.repeat_interleave(shared, dim=2) for t in (q, k))
    decay, h, found = log_decay.exp(), first, []
    decay = decay.unsqueeze(-1) if decay.dim() == 3 else decay
    for t in range(v.shape[1]):
        if doc is not None and t:
            h = h * (doc[:, t] == doc[:, t - 1])[:, None, None, None]
        h = h * decay[:, t].unsqueeze(-1) + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        found.append((q[:, t].unsqueeze(-2) @ h).squeeze(-2))
    return torch.stack(found, dim=1) if found else v, h


def by_kernel(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, first: Tensor, doc: Tensor | None, *, half: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute `token_by_token` of one document a row on CUDA, products in `half`."""
    assert doc is None
    y, last = fla.decaying_sums(q, k, v, log_decay, first, half)
    return y.to(v.dtype), last.to(first.dtype)


def by_operator(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, first: Tensor, doc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `token_by_token` of one document a row by one operator of a graph that is being exported."""
    assert doc is None
    return linear_attention(q, k, v, first, log_decay=log_decay)


def in_stretches(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, first: Tensor, doc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `in_chunks` of one document a row on CPU, and its gradients, in what the processor's caches hold."""
    assert doc is None
    return stretched.fading_sums(q, k, v, log_decay, first, partial(in_chunks, doc=None))


def in_chunks(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, first: Tensor, doc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `token_by_token` of log_decay (B, T, H) by products of matrices: scores within chunks, states across."""
    length, groups = v.shape[1], k.shape[2]
    size = size_of_chunks(CHUNK, length)
    decays = Decays.of(log_decay, size, doc)
    q, k, v = cut(q, size), cut(k, size), cut(v, size)

    def by_group(t: Tensor) -> Tensor:
        split: Tensor = t.unflatten(2, (groups, -1))
        return split

    scores = ((q @ k.mT).unsqueeze(3) * by_group(decays.within)).flatten(2, 3)
    sums = ((k.unsqueeze(3) * by_group(decays.onward)).mT @ by_group(v)).flatten(2, 3)
    last, (before,) = carried(_faded, first, (decays.across, sums))
    read = (q.unsqueeze(3) @ by_group(before)).flatten(2, 3) * decays.into
    return joined(scores @ v + read, length), last


def _faded(h: Tensor, across: Tensor, sums: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return h * across + sums, (h,)


def in_chunks_by_entry(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, first: Tensor, doc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `token_by_token` of log_decay (B, T, H, D), as many heads of q and k as of v, in short chunks.

    What is left of each entry between two tokens is formed for every pair of a chunk: no power of a decay is ever
    divided by another, which strong ones would take beyond all numbers (Yang et al. 2023, section 4.3).
    """
    size = size_of_chunks(FEW, v.shape[1])
    q, k, v, g = cut(q, size), cut(k, size), cut(v, size), cut(log_decay, size)
    earlier = torch.ones(size, size, dtype=torch.bool, device=g.device).tril()
    # between[i, j, m]: whether token m fades what goes from token j to token i.
    between = (earlier.unsqueeze(1) & earlier.tril(-1).T.unsqueeze(0)).to(g.dtype)
    left = (between.flatten(0, 1) @ g).unflatten(-2, (size, size)).exp()  # (B, N, H, L, L, D)
    within = (q.unsqueeze(-2) * k.unsqueeze(-3) * left).sum(-1)
    into, onward = g.cumsum(-2).exp(), left[..., -1, :, :]
    if doc is not None:
        docs = cut(doc.unsqueeze(-1).unsqueeze(-1) + 1, size) - 1  # what fills the last chunk is of no document
        handed = torch.cat([docs[:, :1, :, :1] - 1, docs[:, :-1, :, -1:]], dim=1)
        into, onward = into * (docs == handed), onward * (docs == docs[..., -1:, :])
        earlier = earlier & (docs == docs.mT)
    scores = within.masked_fill(~earlier, 0.0)
    last, (before,) = carried(_faded, first, (into[..., -1, :].unsqueeze(-1), (k * onward).mT @ v))
    return joined(scores @ v + (q * into) @ before, log_decay.shape[1]), last


@dataclass(frozen=True, kw_only=True)
class FadingConfig(Headed):
    """n_heads: heads. head_dim: width of a head's queries and keys (d_model / n_heads). v_dim: of its values.

    eps: of the norm.
    """

    n_heads: int
    head_dim: int | None = None
    v_dim: int | None = None
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("n_heads", "head_dim", "v_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, not {value}")

    def heads(self, d_model: int) -> tuple[int, int]:
        """Return the number of heads, and the width of their queries and keys."""
        if self.head_dim is None and d_model % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} heads do not divide d_model {d_model}; set head_dim, or n_heads")
        return self.n_heads, self.head_dim or d_model // self.n_heads


class FadingMixer(Mixer, ABC):
    """Carry a fading sum of outer products in each head, and read it by the token's query; a gated norm follows.

    h_t = a_t h_(t-1) + k_t v_t^T, y_t = h_t^T q_t / sqrt(D). A child says what is left of the past, a_t. `wide`: how
    much wider values are than keys where the options say nothing. `by_entry`: whether each entry of a key fades by
    itself.
    """

    lowers: ClassVar[Mapping[str, str]] = {"ort": "as_operator"}
    wide: int = 1
    by_entry = False
    config: Any

    def __init__(self, config: FadingConfig, site: Site) -> None:
        super().__init__(config, site)
        self.n_heads, self.head_dim = config.heads(site.d_model)
        self.v_dim = config.v_dim or self.wide * self.head_dim
        keys, values = self.n_heads * self.head_dim, self.n_heads * self.v_dim
        self.sizes = (keys, keys, values, values)
        self.up = Linear(site.d_model, sum(self.sizes))
        self.norm = GatedNorm(values, self.v_dim, eps=config.eps, gate_first=False)
        self.out = Linear(values, site.d_model, gain=(2 * site.n_layers) ** -0.5)

    @abstractmethod
    def log_decay(self, x: Tensor) -> Tensor:
        """Return the logarithm of what x (B, T, C) leaves of the past, fp32 at least: (B, T, H), or (B, T, H, D)."""

    def declared(self) -> Declared:
        """Keep the sums of all heads, at least in fp32."""
        return {"sums": Remembered(("batch", self.n_heads, self.head_dim, self.v_dim), "fixed", "accumulate")}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Sum in chunks; one token of a step at once."""
        return self._mixed(x, context, state, fastest(x, context, by_entry=self.by_entry), self.norm)

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Sum token by token."""
        return self._mixed(x, context, state, token_by_token, self.norm.reference)

    def as_operator(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Leave the sums to ONNX Runtime's LinearAttention, for which one token is one step and no chunk."""
        if not is_exporting() or context.tokens.doc is not None:
            return type(self).forward(self, x, context, state)
        return self._mixed(x, context, state, by_operator, self.norm)

    def path(self, tokens: int) -> str:
        """Name the path."""
        return f"chunks of {FEW}" if self.by_entry else stretched.path(CHUNK)

    def on_cuda(self) -> str:
        """Name the kernels that are there, or say why they are not."""
        if self.by_entry:
            return ""
        return f"the same: {why}" if (why := fla.missing()) else "flash-linear-attention's simple_gla"

    def in_one_graph(self) -> bool:
        """Say whether torch.compile can take it all: not the kernels."""
        return self.by_entry or not fla.there()

    def _mixed(
        self,
        x: Tensor,
        context: Context,
        state: Memories | None,
        sums: Sums,
        norm: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Memories | None]:
        valid = context.tokens.valid
        q, k, v, gate = self.up(x).split(self.sizes, dim=-1)
        q, k = (at_least_fp32(t).unflatten(-1, (self.n_heads, -1)) for t in (q, k))
        if "rotate" in self.declares.can:
            q, k = context.rotate(q), context.rotate(k)
        v, fades = at_least_fp32(v).unflatten(-1, (self.n_heads, -1)), self.log_decay(x)
        if valid is not None:  # padding adds nothing, and nothing fades over it
            k = k.masked_fill(~valid[:, :, None, None], 0.0)
            v = v.masked_fill(~valid[:, :, None, None], 0.0)
            fades = fades.masked_fill(~valid.reshape(*valid.shape, *(1,) * (fades.dim() - 2)), 0.0)
        first = v.new_zeros(x.shape[0], self.n_heads, self.head_dim, self.v_dim) if state is None else state["sums"]
        with exactly(x):
            y, last = sums(q * self.head_dim**-0.5, k, v, fades, first, context.tokens.doc)
        out = self.out(norm(y.flatten(-2), gate).to(x.dtype))
        return out, None if state is None else {"sums": last}
