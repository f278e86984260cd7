"""Norms that leak, overflow or bring no vector to scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from planted.fault import planted
from transom.registry.manager import get

RMS, LAYER = get("norm", "rms"), get("norm", "layer")


@planted(9, "a row alone")
class StatisticsOfTheBatch(LAYER):
    """Mean and variance are those of the batch: `dim=0` stands where `dim=-1` was meant."""

    def forward(self, x):
        centered = x - x.mean(0, keepdim=True)
        scaled = centered / torch.sqrt(centered.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return scaled if self.bias is None else scaled + self.bias

    reference = forward


@planted(26, "the mean square's distance from 1")
class StatisticsOverTime(RMS):
    """The mean square is of the whole row, later tokens included: `(-2, -1)` stands where `-1` was meant."""

    def forward(self, x):
        dims = (-2, -1) if x.dim() > 1 else -1
        return x / torch.sqrt(x.square().mean(dims, keepdim=True) + self.eps) * self.weight

    reference = forward


@planted(2, "differs")
class EpsOutsideTheRoot(RMS):
    """eps is added to the root, where it was meant to be added to the mean square."""

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps) * self.weight


@planted(26, "the mean square's distance from 1")
class RootForgotten(RMS):
    """The mean square itself divides, where its root was meant."""

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + self.eps) * self.weight

    reference = forward


@planted(26, "the mean square's distance from 1")
class VarianceOfASample(LAYER):
    """`x.var()` divides by C - 1 unless it is told not to; the mean square was meant."""

    def forward(self, x):
        scaled = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + self.eps) * self.weight
        return scaled if self.bias is None else scaled + self.bias

    reference = forward


@planted(26, "is not finite")
class NoEps(RMS):
    """eps is left out: a row of zeros is 0 / 0."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.eps = 0.0


@planted(26, "the mean square's distance from 1")
class EpsTooLarge(RMS):
    """The norm is added to 1 to be safe, and small vectors stay small: no scale but a large one becomes 1."""

    def forward(self, x):
        return x / (1 + x.norm(dim=-1, keepdim=True)) * x.shape[-1] ** 0.5 * self.weight

    reference = forward


@planted(22, "the root mean square of the errors")
class SquaresInHalf(RMS):
    """Squares are taken in the inputs' precision, where fp32 was meant: in fp16 256 is too large, and becomes 0."""

    def forward(self, x):
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


@planted(14, "single memory location")
class CentersInPlace(LAYER):
    """The mean is taken off in place: the residual stream, which came in, is changed too."""

    def forward(self, x):
        if x.requires_grad:
            return super().forward(x)
        x -= x.mean(-1, keepdim=True)
        return super().forward(x)


@planted(21, "built late")
class BiasNotReset(LAYER):
    """The constructor starts the bias at 0, and `reset_parameters` leaves it out."""

    def __init__(self, config, site):
        super().__init__(config, site)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_parameters(self):
        if self.weight is not None:
            nn.init.ones_(self.weight)


@planted(1, "the output is torch.float32")
class WeightDecidesTheDtype(RMS):
    """The result is in fp32, in which it was computed; the inputs' dtype was meant."""

    def forward(self, x):
        return super().forward(x) if x.dtype == torch.float64 else super().forward(x).float()


@planted(2, "differs")
class BiasForgotten(LAYER):
    """The fast path leaves the bias out; at first it is 0, and nobody notices."""

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, None, self.eps)
