"""Attentions that choose by content, and choose otherwise than they should, or tell otherwise than they choose."""

from __future__ import annotations

from dataclasses import replace

import torch

from planted.fault import planted
from transom.registry.manager import get

LOCAL_P, NATIVE_SPARSE = get("attention", "local_p"), get("attention", "native_sparse")


@planted(5, "what is chosen before changed tokens")
class ChoosesByWhatFollows(LOCAL_P):
    """Queries are centred over the whole row before they say where to look, where each token's own was meant."""

    def _centres(self, q, context):
        return super()._centres(q - q.detach().mean(1, keepdim=True), context)


@planted(10, "what is chosen step by step")
class CountsTheStepAlone(LOCAL_P):
    """After a state a centre is a share of the tokens of this step, where all so far were meant."""

    def _centres(self, q, context):
        tokens = context.tokens
        new = type(tokens)(tokens.pos - tokens.pos[:, :1], tokens.valid, tokens.doc)
        return super()._centres(q, replace(context, tokens=new))


@planted(0, "`chooses` is")
class ChoosesInSilence(LOCAL_P):
    """The choice is made past `context.choose`, so that nothing can hold one path to what another chose."""

    def _centres(self, q, context):
        return super()._centres(q, replace(context, choices=None))


@planted(2, "what a choice loses")
class RoundsDown(LOCAL_P):
    """The fast path looks about the place before the centre, `floor` where the nearest was meant."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v, replace(context, choices=_Down(context.choices)), state)


@planted(6, "the field that is declared")
class ShowsTooMuch(LOCAL_P):
    """`shown` has windows one token too wide: `<` became `<=` twice."""

    def shown(self, q, k, chosen):
        distance = k.pos.unsqueeze(1).unsqueeze(1) - chosen
        return self.visible(q, k) & (distance.abs() <= self.config.window).any(2)


@planted(10, "what is chosen step by step")
class ForgetsWhatItCompressed(NATIVE_SPARSE):
    """After a step compressed keys and values are those of this step alone, where all so far were meant."""

    def _remembered(self, kv, context, state):
        return super()._remembered(kv, context, {**state, "compressed": torch.zeros_like(state["compressed"])})


@planted(10, "what is chosen step by step")
class CountsBlocksFromTheStep(NATIVE_SPARSE):
    """The blocks that always count are those about the token's place in this step, where its text's was meant."""

    def _ranked(self, scores, pos):
        return super()._ranked(scores, pos - pos[:, :1])


@planted(2, "what a choice loses")
class ChoosesBySpansToCome(NATIVE_SPARSE):
    """The fast path scores blocks by all spans that began before a token, where those that ended were meant."""

    def _scored(self, q, k, start):
        shown, self._shown_spans = self._shown_spans, self._begun_spans
        try:
            return super()._scored(q, k, start)
        finally:
            self._shown_spans = shown

    def _begun_spans(self, start, stop, ended, device):
        pos = torch.arange(start, stop, device=device).unsqueeze(1)
        return torch.arange(ended, device=device) * self.stride <= pos


@planted(2, "what a choice loses")
class ChoosesByOneHead(NATIVE_SPARSE):
    """The fast path scores blocks by the first head of a group, where the sum of its heads was meant."""

    def _scored(self, q, k, start):
        first = q.unflatten(2, (self.n_kv_heads, -1))[:, :, :, :1]
        return super()._scored(first.flatten(2, 3), k, start)


class _Down:
    """Take the place before the best one."""

    def __init__(self, choices):
        self.choices = choices

    def settle(self, best, score, valid):
        below = (best - 1).clamp(min=0)
        return below if self.choices is None else self.choices.settle(torch.as_tensor(below), score, valid)
