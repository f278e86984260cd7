"""Attentions that remember something else than what they have seen."""

from __future__ import annotations

from dataclasses import replace

import torch

from planted.fault import planted
from planted.sound import BandAttention, RunningMeanAttention, TurningAttention, at_positions
from transom.core.ring import ring_write
from transom.core.state import Remembered
from transom.registry.manager import get

FULL, LOCAL, LINEAR = get("attention", "full"), get("attention", "local"), get("attention", "linear")
CONV = get("attention", "conv")


@planted(10, "the result")
class SumNotAdvanced(LINEAR):
    """The sums that came in are returned, where those after the new tokens were meant."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v, context, state)[0], state


@planted(10, "the result")
class StateOfTheTokenBefore(RunningMeanAttention):
    """The next state is that before the last token: an index is one too small."""

    def after(self, values, real, state):
        return super().after(values[:, :-1], real[:, :-1], state)

    reference = RunningMeanAttention.forward


@planted(10, "the result")
class SlotOffByOne(LOCAL):
    """New entries are written one slot on: `seen + 1` stands where `seen` was meant."""

    def _written(self, k, v, context, state):
        seen = context.seen + 1
        return {name: ring_write(state[name], new, seen, context.length) for name, new in (("k", k), ("v", v))}


@planted(10, "the result")
class QueriesOneBehind(TurningAttention):
    """After a state queries are turned by the position before theirs: the count of keys was taken before they came."""

    def turned(self, q, k, context):
        return (q if context.seen is None else at_positions(context, -1).rotate(q)), context.rotate(k)


@planted(10, "the result")
class KeysForValues(FULL):
    """Keys are remembered as values: one name was copied and not changed."""

    def forward(self, q, k, v, context, state=None):
        y, after = super().forward(q, k, v, context, state)
        return y, None if after is None else {"k": after["k"], "v": after["k"]}


@planted(10, "a row that goes on")
class CountsPadding(RunningMeanAttention):
    """The count goes on by the number of columns, where real tokens were meant."""

    def after(self, values, real, state):
        return super().after(values, torch.ones_like(real), state)

    reference = RunningMeanAttention.forward


@planted(10, "a row that goes on")
class RemembersPadding(CONV):
    """The newest columns are kept, where the newest real tokens were meant."""

    def _read(self, x, context, state=None):
        values, gate, after = super()._read(x, context, state)
        kept = slice(values.shape[1] - self.before, None)
        return values, gate, None if after is None else {"values": values[:, kept]} if self.before else after


@planted(11, "the state that a step was given")
class WritesItsState(RunningMeanAttention):
    """The sum is added to in place: a state that was forked or kept changes under whoever holds it."""

    def after(self, values, real, state):
        state["sum"] += values.sum(1)
        return {"sum": state["sum"], "count": state["count"] + real.sum(1)}


@planted(11, "the declared dtype")
class SumsDeclaredNarrow(LINEAR):
    """Sums that are kept in fp32 are declared in the model's dtype: `accumulate` was meant."""

    def declared(self):
        return {name: replace(rule, dtype="model") for name, rule in super().declared().items()}


@planted(11, "the declared size")
class RingDeclaredShort(LOCAL):
    """The ring is declared as long as the window less one, and is as long as the window."""

    def declared(self):
        dims = ("batch", max(self.config.window - 1, 1), self.n_kv_heads, self.head_dim)
        return {"k": Remembered(dims, "ring"), "v": Remembered(dims, "ring")}

    def _extend(self, k, v, context, state):
        grown = {name: torch.nn.functional.pad(t, (0, 0, 0, 0, 0, 1)) for name, t in state.items()} if state else None
        return super()._extend(k, v, context, grown)


@planted(11, "appends along no past")
class FixedThatGrows(BandAttention):
    """Keys that append are declared `fixed`."""

    def declared(self):
        return {name: replace(rule, grows="fixed") for name, rule in super().declared().items()}


@planted(10, "the result")
class CountUndeclared(RunningMeanAttention):
    """The count is kept without being declared: nobody hands it on, and it begins anew in every step."""

    def declared(self):
        return {"sum": super().declared()["sum"]}

    def forward(self, x, context, state=None):
        count = x.new_zeros(x.shape[0], dtype=torch.int64)
        return super().forward(x, context, None if state is None else {"count": count, **state})

    reference = forward


@planted(None)
class SumsInHalf(RunningMeanAttention):
    """Sums are remembered in the model's dtype, and declared so: in bf16 they stand still after some hundred tokens."""

    def declared(self):
        total, count = super().declared().values()
        return {"sum": replace(total, dtype="model"), "count": count}

    def after(self, values, real, state):
        after = super().after(values, real, state)
        return {**after, "sum": after["sum"].to(self.value.weight.dtype)}

    reference = RunningMeanAttention.forward


@planted(11, "take context.append(state['k'], new, dim=1) in place of torch.cat")
class PutsBehindItsSlots(BandAttention):
    """New keys are put behind the old ones, also where these have slots for them: no graph can be exported."""

    def extended(self, k, v, context, state):
        if state is None:
            return k, v, None
        k, v = torch.cat([state["k"], k], dim=1), torch.cat([state["v"], v], dim=1)
        return k, v, {"k": k, "v": v}

    def reference(self, q, k, v, context, state=None):
        return self.forward(q, k, v, context, state)
