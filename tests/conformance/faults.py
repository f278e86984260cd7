"""Components with one fault each, and the row that has to catch it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from transom.core.data import Example
from transom.core.objective import Loss, Prepared
from transom.core.state import Remembered
from transom.core.tokens import visible
from transom.registry.manager import get

FULL, LOCAL, LINEAR, RNN = (get("attention", name) for name in ("full", "local", "linear", "rnn"))
ROPE, LEARNED, ALIBI = (get("position", name) for name in ("rope", "learned", "alibi"))
RMS, MLP, TOKEN = get("norm", "rms"), get("feedforward", "mlp"), get("embedding", "token")
LM, CLASSIFIER = get("head", "lm"), get("head", "classifier")
CAUSAL_LM, MASKED_LM = get("objective", "causal_lm"), get("objective", "masked_lm")
TEXT, DECODER = get("data", "text"), get("topology", "decoder")


class LateLocal(LOCAL):
    """See one token more than the ring and the token itself hold."""

    def visible(self, q, k):
        distance = q.pos.unsqueeze(2) - k.pos.unsqueeze(1)
        distance = distance if self.site.causal else distance.abs()
        return visible(q, k, causal=self.site.causal) & (distance < self.config.window + 2)


class NarrowLocal(LOCAL):
    """Declare a narrower field than the one that is mixed."""

    def forward(self, q, k, v, context, state=None):
        wide = LOCAL(replace(self.config, window=self.config.window + 1), self.site)
        return wide.forward(q, k, v, context, state) if state is None else super().forward(q, k, v, context, state)


class Unscaled(FULL):
    """Forget the scale on the fast path."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q / self.scale, k, v, context, state)


class Leaking(FULL):
    """Add what later tokens hold."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v + 1e-3 * v.roll(-1, 1), context, state)

    reference = forward


class Stale(FULL):
    """Return the state that came in."""

    def forward(self, q, k, v, context, state=None):
        y, after = super().forward(q, k, v, context, state)
        return y, None if after is None else {"k": after["k"], "v": after["k"]}


class WritesState(RNN):
    """Write the next state into the one that was given."""

    def forward(self, x, context, state=None):
        y, after = super().forward(x, context, state)
        for name in after or {}:
            state[name].copy_(after[name])
        return y, after


class HalfState(LINEAR):
    """Declare sums in the model's dtype that are kept wider."""

    def declared(self):
        return {name: replace(rule, dtype="model") for name, rule in super().declared().items()}


class OddState(FULL):
    """Declare a growth that there is not."""

    def declared(self):
        return {name: Remembered(rule.dims, "heap") for name, rule in super().declared().items()}


class ReadsPadding(RNN):
    """Let padding reach real tokens."""

    def forward(self, x, context, state=None):
        y, after = super().forward(x, context, state)
        length = context.length
        return y if length is None else y + 1e-3 * length[:, None, None], after


class BlindToDocuments(FULL):
    """Mix packed documents."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v + 1e-3 * v.cumsum(1).detach(), context, state)

    reference = forward


class NotZero(FULL):
    """Give something to a row that sees nothing."""

    def forward(self, q, k, v, context, state=None):
        y, after = super().forward(q, k, v, context, state)
        return y + 1e-3, after

    reference = forward


class KnowsItsBatch(FULL):
    """Let the rows of a batch know of each other."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v + 1e-4 * v.mean(0, keepdim=True), context, state)

    reference = forward


class Draws(FULL):
    """Draw random numbers in every pass."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v * (1 + 1e-14 * torch.rand(1, device=v.device, dtype=v.dtype)), context, state)


class Unregistered(FULL):
    """Keep a tensor that no state_dict reaches."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.table = torch.ones(3)


class Undrawn(FULL):
    """Have a weight that nobody fills."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.weight = nn.Parameter(torch.zeros(self.head_dim))

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v * self.weight, context, state)

    reference = forward


class WritesInput(FULL):
    """Write to its values."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v.mul_(1.5) if not v.requires_grad else v * 1.5, context, state)


class WantsContiguous(MLP):
    """Take contiguous inputs only."""

    def forward(self, x, context, state=None):
        return super().forward(x.view(-1).view(x.shape), context, state)


class RoundsTwice(RMS):
    """Round to bf16 on the way."""

    def forward(self, x):
        return super().forward(x.bfloat16().to(x.dtype) if x.dtype == torch.float16 else x)


class AlwaysSingle(FULL):
    """Give fp32 whatever came in."""

    def forward(self, q, k, v, context, state=None):
        y, after = super().forward(q, k, v, context, state)
        return y.float().to(torch.float64), after


class OnTheCpu(FULL):
    """Make a tensor on the CPU on the way."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v + torch.zeros(1, device="cpu", dtype=v.dtype), context, state)


class Asks(FULL):
    """Ask the device for a number, which breaks a graph."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v * (2.0 if float(v.sum()) > 1e9 else 1.0), context, state)


class SaysTooLittle(FULL):
    """Lack what it can do."""

    declares = replace(FULL.declares, can=FULL.declares.can - {"score"}, lacks={"score": "it was forgotten"})


class SaysTooMuch(LOCAL):
    """Declare what it does not do."""

    declares = replace(LOCAL.declares, can=LOCAL.declares.can | {"cross"}, lacks={})


class SaysItIsCheap(FULL):
    """Declare that its cost is linear."""

    declares = replace(FULL.declares, time=1.0)


class LengthensRope(ROPE):
    """Turn and stretch."""

    def rotate(self, x, tokens):
        return super().rotate(x, tokens) * 1.001


class ColumnsRope(ROPE):
    """Turn by columns in place of positions."""

    def rotate(self, x, tokens):
        here = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        return super().rotate(x, type(tokens)(here))


class RelativeLearned(LEARNED):
    """Declare that a shift changes nothing."""

    relative = True


class Hooked(ALIBI):
    """Declare a hook that it has not."""

    hooks = frozenset({"score", "rotate"})


class NoEpsilon(RMS):
    """Divide by a square root that may be 0."""

    def forward(self, x):
        return x / torch.sqrt(x.square().mean(-1, keepdim=True)) * self.weight


class OverTokens(RMS):
    """Normalize over tokens."""

    def forward(self, x):
        return x / torch.sqrt(x.square().mean((-1, -2), keepdim=True) + self.eps) * self.weight if x.dim() > 1 else x


class Shifts(MLP):
    """Read the neighbour, and not say so."""

    def forward(self, x, context, state=None):
        return super().forward(x + 0.1 * x.roll(1, 1), context, state)

    reference = forward


class DeadWeight(MLP):
    """Have a weight that nothing trains."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.spare = nn.Parameter(torch.zeros(3))

    def reset_parameters(self):
        nn.init.zeros_(self.spare)


class PoolsPadding(CLASSIFIER):
    """Pool padding too."""

    def forward(self, hidden, mask=None):
        return super().forward(hidden, None)


class OtherProjection(LM):
    """Say another projection than it computes."""

    def forward(self, hidden, mask=None):
        return super().forward(hidden, mask) * 1.01


class ScalesTwice(TOKEN):
    """Scale on the fast path alone."""

    def forward(self, input_ids):
        return super().forward(input_ids) * 2


class ShiftedTwice(CAUSAL_LM):
    """Ask for the token after the next."""

    def prepare(self, batch, generator):
        made = super().prepare(batch, generator)
        return Prepared(made.inputs, made.targets.roll(-1, 1), made.mask)


class AsksPadding(CAUSAL_LM):
    """Ask for padding."""

    def prepare(self, batch, generator):
        made = super().prepare(batch, generator)
        return Prepared(made.inputs, batch["input_ids"][:, 1:], made.mask)


class Averages(CAUSAL_LM):
    """Give a mean in place of a sum."""

    def loss(self, hidden, head, prepared):
        found = super().loss(hidden, head, prepared)
        return Loss(found.total / found.count.clamp(min=1), found.count, found.sums)

    def reference(self, hidden, head, prepared):
        found = super().reference(hidden, head, prepared)
        return Loss(found.total / found.count.clamp(min=1), found.count, found.sums)


class DrawsAnywhere(MASKED_LM):
    """Draw from the generator that all share."""

    def prepare(self, batch, generator):
        return super().prepare(batch, torch.default_generator)


class Shuffled(TEXT):
    """Give examples in another order each time."""

    def examples(self) -> Iterator[Example]:
        found = list(super().examples())
        random.shuffle(found)
        return iter(found)


class Silent(TEXT):
    """Give nothing where there is nothing to read, without a word."""

    def examples(self) -> Iterator[Example]:
        return super().examples() if self.config.path is None else (Example(f"{i}", {"text": "y"}) for i in range(400))


class DropsMask(DECODER):
    """Forget the mask."""

    def forward(self, *, logits=True, **inputs):
        inputs.pop("attention_mask", None)
        return super().forward(logits=logits, **inputs)


CAUGHT: dict[type[Any], int] = {
    LateLocal: 10, NarrowLocal: 6, Unscaled: 2, Leaking: 4, Stale: 10, WritesState: 11, HalfState: 11, OddState: 11,
    ReadsPadding: 7, BlindToDocuments: 12, NotZero: 8, KnowsItsBatch: 9, Draws: 15, Unregistered: 20, Undrawn: 21,
    WritesInput: 14, WantsContiguous: 14, RoundsTwice: 22, AlwaysSingle: 1, OnTheCpu: 1, Asks: 18, SaysTooLittle: 0,
    SaysTooMuch: 0, SaysItIsCheap: 23, LengthensRope: 17, ColumnsRope: 17, RelativeLearned: 17, Hooked: 0,
    NoEpsilon: 26, OverTokens: 26, Shifts: 26, DeadWeight: 24, PoolsPadding: 7, OtherProjection: 2, ScalesTwice: 2,
    ShiftedTwice: 27, AsksPadding: 27, Averages: 27, DrawsAnywhere: 27, Shuffled: 29, Silent: 29, DropsMask: 7,
}  # fmt: skip
