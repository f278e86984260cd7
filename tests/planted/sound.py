"""Small components that are right, whose every step has a place of its own for a mistake."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from transom.core.attention import Declaration, Mechanism, Mixer
from transom.core.component import Site
from transom.core.context import Context
from transom.core.feedforward import FeedForward
from transom.core.heads import HeadsConfig
from transom.core.linear import Linear, at_least_fp32
from transom.core.softmax import softmax_reference
from transom.core.state import PAST, Declared, Memories, Remembered
from transom.core.tokens import Tokens, visible

After = tuple[Tensor, Memories | None]


class BandAttention(Mechanism):
    """Softmax attention within a window, over all scores at once."""

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "rotate", "score", "compile"}),
        lacks={"cross": "a window compares positions of one sequence"},
        time=2.0,
        memory=2.0,
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """window: tokens seen on a side, the token itself included."""

        window: int

    def declared(self) -> Declared:
        """Keep every key and value."""
        entry = Remembered(("batch", PAST, self.n_kv_heads, self.head_dim), "append")
        return {"k": entry, "v": entry}

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return the model's rule, within the window."""
        return visible(q, k, causal=self.site.causal) & self.near(q, k)

    def near(self, q: Tokens, k: Tokens) -> Tensor:
        """Return which keys are at a distance below the window, (B or 1, T, S) bool."""
        return (q.pos.unsqueeze(2) - k.pos.unsqueeze(1)).abs() < self.config.window

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        """Return what `forward` mixes."""
        return self.visible(q, k)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Return (B, H, T, S) at least in fp32."""
        k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
        return torch.einsum("bthd,bshd->bhts", at_least_fp32(q), at_least_fp32(k)) * self.scale

    def weigh(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Return the weights (B, H, T, S); a row that sees nothing has none."""
        return torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=-1) * mask

    def extended(
        self, k: Tensor, v: Tensor, context: Context, state: Memories | None
    ) -> tuple[Tensor, Tensor, Memories | None]:
        """Put what is remembered before k and v, and remember it all."""
        if state is None:
            return k, v, None
        k, v = context.append(state["k"], k), context.append(state["v"], v)
        return k, v, {"k": k, "v": v}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None) -> After:
        """Weigh what is seen."""
        k, v, state = self.extended(k, v, context, state)
        scores, bias = self.scores(q, k), context.score(context.tokens, None, q, k)
        mask = self.sees(context.tokens, context.keys).unsqueeze(1)
        weights = self.weigh(scores if bias is None else scores + bias, mask)
        v = v.repeat_interleave(q.shape[2] // v.shape[2], dim=2)
        return torch.einsum("bhts,bshd->bthd", weights, at_least_fp32(v)).to(v.dtype), state

    def reference(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None) -> After:
        """Take the definition of softmax attention."""
        k, v, state = BandAttention.extended(self, k, v, context, state)
        mask, bias = self.visible(context.tokens, context.keys), context.score(context.tokens, None, q, k)
        return softmax_reference(q, k, v, mask, bias, self.scale)[0], state


class SharpAttention(BandAttention):
    """Sharpen scores by a quarter of the logarithm of how many tokens are seen."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None) -> After:
        """Scale queries, and attend."""
        return super().forward(q * self.sharpness(q, context), k, v, context, state)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None) -> After:
        """Scale queries, and attend by the definition."""
        return super().reference(q * SharpAttention.sharpness(self, q, context), k, v, context, state)

    def sharpness(self, q: Tensor, context: Context) -> Tensor:
        """Return a factor for each token, (B or 1, T, 1, 1)."""
        count = self.visible(context.tokens, context.keys).sum(-1)
        return (torch.log(1 + count) / 4).to(q.dtype)[:, :, None, None]


class TurningAttention(BandAttention):
    """Turn queries and keys itself."""

    turns: ClassVar[Literal["before", "itself"]] = "itself"

    def turned(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return queries and keys, turned."""
        return context.rotate(q), context.rotate(k)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None) -> After:
        """Turn, and attend."""
        return super().forward(*self.turned(q, k, context), v, context, state)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None) -> After:
        """Turn, and attend by the definition."""
        return super().reference(context.rotate(q), context.rotate(k), v, context, state)


class RunningMeanAttention(Mixer):
    """Give each token the mean of the values so far."""

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "compile"}),
        ignores=frozenset({"rotate"}),
        lacks={
            "two_sided": "it runs forwards",
            "cross": "it reads one sequence",
            "documents": "it counts on through a row",
            "score": "no pair of tokens has a score",
        },
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Take no options."""

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.value = Linear(site.d_model, site.d_model)
        self.out = Linear(site.d_model, site.d_model)

    def declared(self) -> Declared:
        """Keep the sum of values, and how many there were."""
        total = Remembered(("batch", self.site.d_model), "fixed", "accumulate")
        return {"sum": total, "count": Remembered(("batch",), "fixed", "int64")}

    def read(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return values (B, T, C), 0 at padding, at least in fp32, and which are real, (B, T) int64."""
        values, valid = at_least_fp32(self.value(x)), context.tokens.valid
        if valid is None:
            return values, torch.ones_like(x[:, :, 0], dtype=torch.int64)
        return values.masked_fill(~valid.unsqueeze(-1), 0.0), valid.long()

    def sums(self, values: Tensor) -> Tensor:
        """Return the running sums (B, T, C) of values."""
        return values.cumsum(1)

    def after(self, values: Tensor, real: Tensor, state: Memories) -> Memories:
        """Return the next state."""
        return {"sum": state["sum"] + values.sum(1), "count": state["count"] + real.sum(1)}

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        """Return total (B, T, C) by count (B, T)."""
        return total / count.clamp(min=1).unsqueeze(-1)

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> After:
        """Sum up, beginning with what is remembered."""
        values, real = self.read(x, context)
        total, count = self.sums(values), real.cumsum(1)
        if state is not None:
            total, count = total + state["sum"].unsqueeze(1), count + state["count"].unsqueeze(1)
            state = self.after(values, real, state)
        return self.out(self.mean(total, count).to(x.dtype)), state

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> After:
        """Multiply with a triangle of ones."""
        values, real = RunningMeanAttention.read(self, x, context)
        triangle = values.new_ones(x.shape[1], x.shape[1]).tril()
        total, count = triangle @ values, real.cumsum(1)
        if state is not None:
            total, count = total + state["sum"].unsqueeze(1), count + state["count"].unsqueeze(1)
            state = RunningMeanAttention.after(self, values, real, state)
        return self.out((total / count.clamp(min=1).unsqueeze(-1)).to(x.dtype)), state


class Square(torch.autograd.Function):
    """Square what is positive, and keep x alone for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return relu(x)^2."""
        ctx.save_for_backward(x)
        return F.relu(x).square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return 2 relu(x) times the gradient."""
        (x,) = ctx.saved_tensors
        return 2 * F.relu(x) * gradient


class SquareFeedForward(FeedForward):
    """Widen, square what is positive, and narrow; the square brings its own gradient."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """d_ff: the inner width."""

        d_ff: int

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.up = Linear(site.d_model, config.d_ff)
        self.down = Linear(config.d_ff, site.d_model)

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> After:
        """Change each token of x (B, T, C)."""
        return self.down(self.square(self.up(x))), state

    def square(self, x: Tensor) -> Any:
        """Return the square of what is positive."""
        return Square.apply(x)  # type: ignore[no-untyped-call]

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> After:
        """Leave the gradient to torch."""
        return self.down(F.relu(self.up(x)).square()), state


class ShiftFeedForward(SquareFeedForward):
    """Take in the token before, which is remembered (Peng et al. 2023)."""

    mixes_tokens: ClassVar[bool] = True

    def declared(self) -> Declared:
        """Keep the newest token."""
        return {"last": Remembered(("batch", self.site.d_model), "fixed")}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> After:
        """Add half of the token before, and change each."""
        y, _ = super().forward(x + self.before(x, context, state) / 2, context)
        return y, None if state is None else {"last": self.newest(x, context, state)}

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> After:
        """Leave the gradient to torch."""
        y, _ = super().reference(x + self.before(x, context, state) / 2, context)
        return y, None if state is None else {"last": self.newest(x, context, state)}

    def before(self, x: Tensor, context: Context, state: Memories | None) -> Tensor:
        """Return the token before each, (B, T, C); 0 before a document's first."""
        last = torch.zeros_like(x[:, :1]).sum(1) if state is None else state["last"]
        before = torch.cat([last.unsqueeze(1), x], dim=1)[:, :-1]
        doc = context.tokens.doc
        if doc is None:
            return before
        same = F.pad(doc, (1, 0), value=-1)[:, :-1] == doc
        return before * same.unsqueeze(-1)

    def newest(self, x: Tensor, context: Context, state: Memories) -> Tensor:
        """Return the last real token of each row, (B, C)."""
        known, count = torch.cat([state["last"].unsqueeze(1), x], dim=1), context.length
        if count is None:
            return known[:, -1]
        return known.gather(1, count[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)


def at_positions(context: Context, offset: int) -> Context:
    """Return a context whose tokens stand elsewhere."""
    tokens = context.tokens
    return replace(context, tokens=Tokens(tokens.pos + offset, tokens.valid, tokens.doc))
