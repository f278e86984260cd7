"""Attentions that compute something else, in one precision or all."""

from __future__ import annotations

import torch

from planted.fault import planted
from planted.sound import BandAttention, RunningMeanAttention, TurningAttention
from transom.core.linear import at_least_fp32
from transom.registry.manager import get

FULL, LINEAR = get("attention", "full"), get("attention", "linear")


@planted(2, "differs")
class Unscaled(BandAttention):
    """Scores are not scaled on the fast path."""

    def scores(self, q, k):
        return super().scores(q, k) / self.scale


@planted(2, "twice the scale")
class UnscaledThroughout(BandAttention):
    """Scores are not scaled, in the reference neither: the option `scale` does nothing."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q / self.scale, k, v, context, state)

    def reference(self, q, k, v, context, state=None):
        return super().reference(q / self.scale, k, v, context, state)


@planted(2, "differs")
class ScaledTwice(FULL):
    """Queries are scaled, and the kernel scales once more."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q * self.scale, k, v, context, state)


@planted(2, "differs")
class ScaledByDefault(FULL):
    """The kernel's own scale is taken, head_dim^-1/2, where the option `scale` was meant."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q * (self.head_dim**-0.5 / self.scale), k, v, context, state)


@planted(2, "differs")
class GroupsInTurn(BandAttention):
    """Key heads are dealt out in turn, by `repeat`; each serves a run of query heads, by `repeat_interleave`."""

    def scores(self, q, k):
        return super().scores(q, k.repeat(1, 1, q.shape[2] // k.shape[2], 1))


@planted(2, "differs")
class LayoutsApart(TurningAttention):
    """Queries are turned in adjacent pairs and keys in halves, where the reference turns both in halves."""

    def turned(self, q, k, context):
        return interleaved(q, context), context.rotate(k)


@planted(17, "shifted places")
class LayoutsApartThroughout(TurningAttention):
    """Queries are turned in adjacent pairs and keys in halves; one layout for both was meant."""

    def turned(self, q, k, context):
        return interleaved(q, context), context.rotate(k)

    def reference(self, q, k, v, context, state=None):
        return BandAttention.reference(self, *self.turned(q, k, context), v, context, state)


def interleaved(x, context):
    """Turn adjacent entries by a position that turns halves."""
    apart = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
    return torch.stack(context.rotate(apart).chunk(2, dim=-1), dim=-1).flatten(-2)


@planted(5, "what comes before changed tokens")
class NoMaximum(BandAttention):
    """The exponential is taken of scores as they are, where less their maximum was meant: it overflows."""

    def weigh(self, scores, mask):
        weights = torch.exp(scores) * mask
        return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


@planted(5, "what comes before changed tokens")
class MaximumOfAll(BandAttention):
    """The largest of all scores is taken off, where each row's own was meant: other rows underflow to nothing."""

    def weigh(self, scores, mask):
        if scores.numel() == 0:
            return scores
        weights = torch.exp(scores - scores.max()) * mask
        return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


@planted(22, "is not finite")
class ScoresInHalf(BandAttention):
    """Scores are summed and scaled in the inputs' precision, where fp32 at least was meant."""

    def scores(self, q, k):
        k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
        return at_least_fp32(torch.einsum("bthd,bshd->bhts", q, k) * self.scale)


@planted(1, "the output is torch.float32")
class StaysWide(RunningMeanAttention):
    """What was summed in fp32 is given in fp32, where the inputs' precision was meant."""

    def forward(self, x, context, state=None):
        y, after = super().forward(x, context, state)
        return y if x.dtype == torch.float64 else y.float(), after


@planted(3, "a gradient is not the limit")
class KeysWithoutGradient(BandAttention):
    """Keys are detached where the remembered ones alone were meant: no gradient comes through them."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k.detach(), v, context, state)

    def reference(self, q, k, v, context, state=None):
        return super().reference(q, k.detach(), v, context, state)


@planted(2, "a gradient")
class QueriesUnderNoGrad(FULL):
    """Queries are normalised for the kernel's sake under `no_grad`: values are right, and gradients are not."""

    def forward(self, q, k, v, context, state=None):
        with torch.no_grad():
            kept = q.clone()
        return super().forward(kept, k, v, context, state)


@planted(15, "a rerun is not bit-equal")
class DropsInEval(BandAttention):
    """Weights are dropped by `F.dropout(weights, 0.1)`, whose `training` is True unless it is given."""

    def weigh(self, scores, mask):
        return torch.nn.functional.dropout(super().weigh(scores, mask), 0.1)


@planted(15, "bit-equal")
class FeaturesDrawnAnew(LINEAR):
    """Random features are drawn in every pass, where a draw at construction was meant."""

    def key_features(self, k):
        signs = torch.randint(2, k.shape[-1:], device=k.device) * 2 - 1
        return super().key_features(k * signs)


@planted(14, "an input, once it was used")
class ScalesInPlace(FULL):
    """Queries are scaled in place, where a scaled copy was meant: whoever gave them has other numbers."""

    def forward(self, q, k, v, context, state=None):
        scaled = q.mul_(self.scale) if not q.requires_grad else q * self.scale
        return super().forward(scaled / self.scale, k, v, context, state)


@planted(1, "cpu is not on the expected device meta")
class PlacesOnTheCpu(BandAttention):
    """A row of the mask is made without `device=`: on the CPU, wherever the inputs are."""

    def near(self, q, k):
        return super().near(q, k) & torch.ones(k.pos.shape[1], dtype=torch.bool)
