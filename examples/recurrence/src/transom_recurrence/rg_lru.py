"""The real-gated linear recurrent unit, as a mixer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.core import Context, Declaration, Linear, Mixer, Remembered, Site

State = dict[str, Tensor] | None
POWER = 8.0
CHUNK = 16
"""Tokens a chunk: sums are doubled within chunks and then over their ends, so that the cost stays linear."""


class RgLruAttention(Mixer):
    """Carry a decaying sum of gated inputs from token to token, gated by a second branch (De et al. 2024, section 2).

    With u = W_u x, r = sigmoid(W_r u), i = sigmoid(W_i u) and a = sigmoid(decay)^(8 r), the sum is h_t = a_t h_(t-1) +
    sqrt(1 - a_t^2) i_t u_t, and W_o (gelu(W_g x) h) comes out. Where both sides are seen, a second sum runs backwards.
    """

    declares = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "compile"}),
        ignores=frozenset({"rotate"}),
        lacks={
            "score": "it carries one sum from token to token, and no pair of tokens ever has a score",
            "cross": "it reads one sequence in order, and has no queries to put to a memory",
        },
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """d_hidden: width of what is carried, for each direction (d_model when left out)."""

        d_hidden: int | None = None

        def __post_init__(self) -> None:
            if self.d_hidden is not None and self.d_hidden < 1:
                raise ValueError(f"d_hidden: {self.d_hidden} is not a width; at least 1")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.ways = 1 if site.causal else 2
        width = self.ways * (config.d_hidden or site.d_model)
        self.up = Linear(site.d_model, 2 * width)
        self.gates = Linear(width, 2 * width, bias=True)
        self.decay = nn.Parameter(torch.empty(width))
        self.out = Linear(width, site.d_model, gain=(2 * site.n_layers) ** -0.5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw decays so that sigmoid(decay)^8 is uniform in [0.9, 0.999]: memories of ten to a thousand tokens."""
        nn.init.uniform_(self.decay, 0.9, 0.999)
        with torch.no_grad():
            self.decay.pow_(1 / POWER).logit_()

    def declared(self) -> dict[str, Remembered]:
        """Keep the sum, (B, d_hidden), at least in fp32."""
        return {"h": Remembered(("batch", self.config.d_hidden or self.site.d_model), "fixed", "accumulate")}

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        """Sum over x (B, T, C) by doubling: the same operations for any T, so that it compiles and exports."""
        return self._mixed(_doubling, x, context, state)

    def reference(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        """Sum over x (B, T, C) token by token."""
        return self._mixed(_stepping, x, context, state)

    def path(self, tokens: int) -> str:
        """Name the path."""
        return f"doubling in chunks of {CHUNK}"

    def _mixed(self, sums: Callable[..., Tensor], x: Tensor, context: Context, state: State) -> tuple[Tensor, State]:
        u, branch = self.up(x).chunk(2, dim=-1)
        a, b = self._terms(u, context)
        if state is not None:  # what is remembered decays once more, and comes in with the first token
            b = torch.cat([b[:, :1] + a[:, :1] * state["h"].unsqueeze(1), b[:, 1:]], dim=1)
        ahead, *back = zip(a.chunk(self.ways, dim=-1), b.chunk(self.ways, dim=-1), strict=True)
        h = sums(*ahead, self.site.max_seq_len)
        if state is not None:
            every, count = torch.cat([state["h"].unsqueeze(1), h], dim=1), context.length
            if count is None:
                state = {"h": every[:, -1]}
            else:
                state = {"h": every.gather(1, count[:, None, None].expand(-1, 1, every.shape[2])).squeeze(1)}
        if back:
            turned = (t.flip(1) for t in back[0])
            h = torch.cat([h, sums(*turned, self.site.max_seq_len).flip(1)], dim=-1)
        return self.out(F.gelu(branch) * h.to(branch.dtype)), state

    def _terms(self, u: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return a and b of h_t = a_t h_(t-1) + b_t, (B, T, ways * d_hidden), for both directions as they stand."""
        wide = torch.promote_types(u.dtype, torch.float32)
        r, i = torch.sigmoid(self.gates(u).to(wide)).chunk(2, dim=-1)
        log_a = POWER * r * F.logsigmoid(self.decay.to(wide))
        a, doc, valid = log_a.exp(), context.tokens.doc, context.tokens.valid
        # 1 - a^2 without cancellation; where it is 0, its root has no gradient.
        b = torch.sqrt((-torch.tanh(log_a) * (1 + a * a)).clamp(min=1e-12)) * i * u.to(wide)
        if doc is not None:  # nothing crosses from one document to the next, nor back
            new = doc[:, 1:] != doc[:, :-1]
            ends = [F.pad(new, pad).unsqueeze(-1) for pad in ((1, 0), (0, 1))]
            a = torch.cat([t.masked_fill(e, 0.0) for t, e in zip(a.chunk(self.ways, -1), ends, strict=False)], dim=-1)
        return a, b if valid is None else b.masked_fill(~valid.unsqueeze(-1), 0.0)


def _stepping(a: Tensor, b: Tensor, longest: int) -> Tensor:
    """Return h_t = a_t h_(t-1) + b_t, (B, T, C), from nothing, step by step."""
    h, found = torch.zeros_like(b[:, :1]).sum(1), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        found.append(h)
    return torch.stack(found, dim=1) if found else b


def _doubling(a: Tensor, b: Tensor, longest: int) -> Tensor:
    """Return the same where no more than `longest` columns in a row hold tokens."""
    length = b.shape[1]
    if length == 1 and not torch.compiler.is_exporting():
        return b
    chunks = (length + CHUNK - 1) // CHUNK
    a, b = (F.pad(t, (0, 0, 0, chunks * CHUNK - length)).unflatten(1, (chunks, CHUNK)) for t in (a, b))
    a, b = _doubled(a, b, CHUNK)
    carried = _doubled(a[:, :, -1], b[:, :, -1], -(-longest // CHUNK))[1]
    h = b + a * F.pad(carried, (0, 0, 1, 0))[:, :-1].unsqueeze(2)
    return h.flatten(1, 2)[:, :length]


def _doubled(a: Tensor, b: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Return the products of a and the sums h over dimension -2 (Hillis and Steele 1986): each step doubles reach."""
    length, reach = b.shape[-2], 1
    while reach < longest:
        b = b + a * F.pad(b, (0, 0, reach, 0))[..., :length, :]
        a = a * F.pad(a, (0, 0, reach, 0), value=1.0)[..., :length, :]
        reach *= 2
    return a, b
