"""Feedforwards that mix, draw, forget or train what they should not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from planted.fault import planted
from planted.sound import ShiftFeedForward, Square, SquareFeedForward
from transom.core.activation import activate
from transom.registry.manager import get

MLP, GLU = get("feedforward", "mlp"), get("feedforward", "glu")


@planted(26, "a token reaches a neighbour")
class MixesUndeclared(ShiftFeedForward):
    """It takes in the token before, and does not declare `mixes_tokens`."""

    mixes_tokens = False


@planted(26, "no neighbour reaches a token")
class SaysItMixes(MLP):
    """It declares `mixes_tokens`, left over from a version that did."""

    mixes_tokens = True


@planted(10, "differs")
class ForgetsTheTokenBefore(ShiftFeedForward):
    """The newest token is not declared as a state: the first of each step has none before it."""

    def declared(self):
        return {}


@planted(10, "a row that goes on")
class RemembersThePadding(ShiftFeedForward):
    """The last column is remembered, where the last real token was meant."""

    def newest(self, x, context, state):
        return torch.cat([state["last"].unsqueeze(1), x], dim=1)[:, -1]


class HalfSquare(Square):
    """Return half of the gradient."""

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return F.relu(x) * gradient


@planted(2, "differs")
class FactorOfTheGradient(SquareFeedForward):
    """The gradient of the square lacks its factor of 2."""

    def square(self, x):
        return HalfSquare.apply(x)


@planted(3, "a gradient is not the limit")
class FactorOfTheGradientThroughout(SquareFeedForward):
    """The gradient of the square lacks its factor of 2, in the reference too, which takes the same function."""

    def square(self, x):
        return HalfSquare.apply(x)

    reference = SquareFeedForward.forward


@planted(2, "differs")
class HalvesSwapped(GLU):
    """Gate and value come from one product, and are taken from it in the wrong order."""

    def forward(self, x, context, state=None):
        value, gate = self.gate_up(x).chunk(2, dim=-1)
        return self.down(activate(self.config.activation, gate) * value), state


@planted(2, "differs")
class AnotherGelu(MLP):
    """The fast path takes gelu by its approximation with tanh; the exact one was meant."""

    def forward(self, x, context, state=None):
        if self.config.activation != "gelu":
            return super().forward(x, context, state)
        return self.down(F.gelu(self.up(x), approximate="tanh")), state


@planted(15, "a rerun is not bit-equal")
class DropsAlways(MLP):
    """`F.dropout(y, 0.1)` drops in evaluation too: `self.training` was meant to be given."""

    def forward(self, x, context, state=None):
        y, state = super().forward(x, context, state)
        return F.dropout(y, 0.1), state


@planted(15, "a random number was drawn")
class DrawsInEval(MLP):
    """Noise for training is drawn in evaluation too, and multiplied by 0: results are right, and seeds run apart."""

    def forward(self, x, context, state=None):
        return super().forward(x + 0.0 * torch.randn_like(x), context, state)


@planted(24, "has no gradient")
class ScaleUnused(MLP):
    """A learned scale is made and never applied."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.scale = nn.Parameter(torch.ones(site.d_model))

    def reset_parameters(self):
        nn.init.ones_(self.scale)


class ScaledFeedForward(MLP):
    """Scale what is written by a learned number for each entry."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.make_scale(site.d_model)

    def make_scale(self, width):
        self.scale = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.constant_(self.scale, 0.5)

    def forward(self, x, context, state=None):
        y, state = super().forward(x, context, state)
        return y * self.scale, state

    def reference(self, x, context, state=None):
        y, state = super().reference(x, context, state)
        return y * self.scale, state


@planted(20, "is a tensor that no state_dict")
class ScaleUnregistered(ScaledFeedForward):
    """The scale is a tensor that asks for a gradient, where an `nn.Parameter` was meant: nobody saves or trains it."""

    def make_scale(self, width):
        self.scale = torch.full((width,), 0.5, requires_grad=True)


@planted(21, "built late")
class ScaleNotReset(ScaledFeedForward):
    """The scale is filled where it is made, and `reset_parameters`, which fills what is built late, leaves it out."""

    def make_scale(self, width):
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def reset_parameters(self):
        return None


@planted(14, "view")
class WantsContiguous(MLP):
    """Tokens are put in one row by `view`, which wants them contiguous; `flatten` was meant."""

    def forward(self, x, context, state=None):
        y, state = super().forward(x.view(-1, x.shape[-1]), context, state)
        return y.view(x.shape), state


@planted(14, "single memory location")
class WritesItsInput(MLP):
    """Large inputs are cut off in place, which changes the residual stream too."""

    def forward(self, x, context, state=None):
        return super().forward(x.clamp(-2, 2) if x.requires_grad else x.clamp_(-2, 2), context, state)

    def reference(self, x, context, state=None):
        return super().reference(x.clamp(-2, 2), context, state)


class LoudestFeedForward(MLP):
    """Change the entries of each token that are louder than its mean alone."""

    def loudness(self, x):
        return x.abs().mean(-1, keepdim=True)

    def forward(self, x, context, state=None):
        return super().forward(x * (x.abs() > self.loudness(x)), context, state)

    def reference(self, x, context, state=None):
        return super().reference(x * (x.abs() > self.loudness(x)), context, state)


@planted(9, "a row alone")
class ThresholdOfTheBatch(LoudestFeedForward):
    """The threshold is the mean of the whole batch, where each token's own was meant: a row knows its batch."""

    def loudness(self, x):
        return x.detach().abs().mean()
