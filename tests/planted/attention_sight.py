"""Attentions that see what they should not, or not what they should."""

from __future__ import annotations

from dataclasses import replace

import torch

from planted.fault import planted
from planted.sound import BandAttention, SharpAttention
from transom.core.tokens import visible
from transom.registry.manager import get

FULL, LINEAR, RNN = get("attention", "full"), get("attention", "linear"), get("attention", "rnn")


@planted(6, "the field that is declared")
class WindowTooWide(BandAttention):
    """The window is one token too wide: `<=` stands where `<` was meant."""

    def sees(self, q, k):
        distance = (q.pos.unsqueeze(2) - k.pos.unsqueeze(1)).abs()
        return visible(q, k, causal=self.site.causal) & (distance <= self.config.window)

    reference = BandAttention.forward


@planted(6, "the field that is declared")
class WindowOfTheDeclarationTooWide(BandAttention):
    """`visible` leaves the window out, where it was meant to say what is mixed."""

    def visible(self, q, k):
        return visible(q, k, causal=self.site.causal)

    def sees(self, q, k):
        return super().visible(q, k)

    reference = BandAttention.forward


@planted(4, "depends on later ones")
class SeesOneAhead(BandAttention):
    """The triangle begins one diagonal too far, `triu(2)`: each token sees the one after it."""

    def visible(self, q, k):
        ahead = type(k)(k.pos - 1, k.valid, k.doc) if self.site.causal else k
        return visible(q, ahead, causal=self.site.causal) & self.near(q, k)


@planted(8, "a real token gives 0")
class MissesItself(BandAttention):
    """`k < q` stands where `k <= q` was meant: a token does not see itself."""

    def visible(self, q, k):
        itself = k.pos.unsqueeze(1) == q.pos.unsqueeze(2)
        return super().visible(q, k) & ~itself


@planted(5, "what comes before changed tokens")
class CentersOverTime(BandAttention):
    """Values are centred over the whole row, later tokens included, where each token's own were meant."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v - v.mean(1, keepdim=True), context, state)

    def reference(self, q, k, v, context, state=None):
        return super().reference(q, k, v - v.mean(1, keepdim=True), context, state)


@planted(0, "'two_sided'")
class CausalOnBothSides(FULL):
    """The mask is always the causal one, where the site was meant to say so: `two_sided` is declared."""

    def visible(self, q, k):
        return visible(q, k, causal=not self.site.cross)

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v, replace(context, causal=True), state)


@planted(12, "differs")
class MixesDocuments(BandAttention):
    """The mask is made of columns and padding alone; documents, which it declares to keep apart, were meant too."""

    def visible(self, q, k):
        return super().visible(type(q)(q.pos, q.valid), type(k)(k.pos, k.valid))


@planted(7, "a row padded")
class SeesPadding(BandAttention):
    """The mask leaves out who is real: keys at padding are 0, and take a share of the weights all the same."""

    def visible(self, q, k):
        return super().visible(q, type(k)(k.pos, None, k.doc))


@planted(7, "a row padded")
class SharpensByColumns(SharpAttention):
    """Scores grow with the number of columns, where the tokens that are seen were meant: padding changes the result."""

    def sharpness(self, q, context):
        return torch.log(q.new_tensor(1.0 + context.keys.pos.shape[1])).reshape(1, 1, 1, 1) / 4

    def reference(self, q, k, v, context, state=None):
        return BandAttention.reference(self, q * self.sharpness(q, context), k, v, context, state)


@planted(7, "a memory padded")
class SeesPaddingOfAMemory(FULL):
    """A memory's mask is forgotten: its padding is 0, and takes a share of the weights all the same."""

    def recall(self, q, primed, context):
        k, v = primed["k"].transpose(1, 2), primed["v"].transpose(1, 2)
        return self.reference(q, k, v, context)[0]

    def visible(self, q, k):
        return super().visible(q, type(k)(k.pos, None, k.doc)) if self.site.cross else super().visible(q, k)


@planted(7, "a row padded")
class RunsOverPadding(RNN):
    """The kernel runs over padding too, where rows with padding were meant to hold what they carry."""

    def forward(self, x, context, state=None):
        tokens = type(context.tokens)(context.tokens.pos, None, context.tokens.doc)
        return super().forward(x, type(context)(tokens, context.causal, context.past, context.seen), state)


@planted(8, "does not give 0")
class NothingIsNan(BandAttention):
    """Scores are masked with -inf: a row that sees nothing is 0 / 0, where 0 was meant."""

    def weigh(self, scores, mask):
        return torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)


class UnitKeysAttention(LINEAR):
    """Bring keys to length 1 before their features."""

    def unit(self, k):
        return torch.nn.functional.normalize(k, dim=-1)

    def _key_features(self, k, context):
        return super()._key_features(self.unit(k), context)


@planted(7, "not finite")
class PaddingIsNan(UnitKeysAttention):
    """Keys at padding are 0 / 0, and NaN x 0 is NaN: the division was meant to be guarded."""

    def unit(self, k):
        return k / k.norm(dim=-1, keepdim=True)


@planted(9, "a row alone")
class CentersOverTheBatch(FULL):
    """Values are centred over the batch: `mean(0)` stands where the heads, `mean(2)`, were meant."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v - v.mean(0, keepdim=True), context, state)

    def reference(self, q, k, v, context, state=None):
        return super().reference(q, k, v - v.mean(0, keepdim=True), context, state)


@planted(2, "behind one of other options", profile="full")
class MaskOfTheFirstLayer(BandAttention):
    """The mask is kept for all layers by a name without the window: layers of another window get the first one's."""

    def sees(self, q, k):
        return q.once("band", lambda: self.visible(q, k))
