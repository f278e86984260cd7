"""Attentions that declare, compile or export what they are not."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from planted.fault import planted
from planted.sound import BandAttention, RunningMeanAttention
from transom.core.attention import is_exporting
from transom.core.position import Positions
from transom.registry.manager import get

LINEAR = get("attention", "linear")


@planted(23, "operations grow")
class SaysItIsLinear(BandAttention):
    """Its time is declared linear, and it scores all pairs."""

    declares = replace(BandAttention.declares, time=1.0)


@planted(23, "bytes grow")
class SaysItIsSmall(BandAttention):
    """Its memory is declared linear, as a fused kernel's is, and it holds all scores."""

    declares = replace(BandAttention.declares, memory=1.0)


@planted(23, "operations grow")
class SaysItIsQuadratic(RunningMeanAttention):
    """Its time is declared quadratic, copied from another attention, and it is linear."""

    declares = replace(RunningMeanAttention.declares, time=2.0)


@planted(0, "'documents'")
class SaysDocuments(RunningMeanAttention):
    """It declares that it keeps documents apart, and runs on through them."""

    declares = replace(
        RunningMeanAttention.declares,
        can=RunningMeanAttention.declares.can | {"documents"},
        lacks={n: why for n, why in RunningMeanAttention.declares.lacks.items() if n != "documents"},
    )


@planted(0, "'cross'")
class CrossWithoutPrime(BandAttention):
    """It declares `cross`, and has neither `prime` nor `recall`."""

    declares = replace(BandAttention.declares, can=BandAttention.declares.can | {"cross"}, lacks={})


@planted(0, "'score'")
class SaysScore(BandAttention):
    """It declares that it takes a bias on scores, and drops it."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v, context.at(None), state)

    def reference(self, q, k, v, context, state=None):
        return super().reference(q, k, v, context.at(None), state)


@planted(0, "'rotate'")
class SaysRotate(LINEAR):
    """It declares that it turns queries and keys itself, and does not."""

    def forward(self, q, k, v, context, state=None):
        return super().forward(q, k, v, context.at(None), state)

    def reference(self, q, k, v, context, state=None):
        return super().reference(q, k, v, context.at(None), state)


@planted(0, "declare 'score'")
class LacksWhatItCan(BandAttention):
    """It lacks `score`, by a line left over from an earlier version, and takes a bias."""

    declares = replace(
        BandAttention.declares,
        can=BandAttention.declares.can - {"score"},
        lacks={**BandAttention.declares.lacks, "score": "its kernel takes none"},
    )


@planted(18, "it does not compile")
class AsksTheDevice(BandAttention):
    """Large values are looked for with `float(...)`, which breaks the graph that it declares to be one."""

    def scores(self, q, k):
        scores = super().scores(q, k)
        return scores.clamp(-1e9, 1e9) if scores.numel() and float(scores.detach().abs().max()) > 1e9 else scores


@planted(18, "graphs for 5 lengths")
class StepsThroughTheRow(RunningMeanAttention):
    """It goes through the row in a Python loop: a graph for each length, and none to export for all of them."""

    def sums(self, values):
        total, found = torch.zeros_like(values[:, :1]).sum(1), []
        for value in values.unbind(1):
            total = total + value
            found.append(total)
        return torch.stack(found, dim=1) if found else values


@planted(1, "numpy")
class SumsInNumpy(RunningMeanAttention):
    """Sums are NumPy's: without gradients, on the CPU alone, and in no graph."""

    def sums(self, values):
        return torch.from_numpy(np.cumsum(values.detach().numpy(), axis=1))


@planted(19, "logits")
class LowersWithoutBias(BandAttention):
    """The form for exported graphs drops what positions add to the scores."""

    lowers: ClassVar = {"onnx": "lowered"}

    def lowered(self, q, k, v, context, state=None):
        positions = [p for p in context.positions if "score" not in p.hooks]
        return BandAttention.forward(self, q, k, v, context.at(Positions(positions)), state)


@planted(19, "logits")
class ExportsOneToken(BandAttention):
    """A graph is made for steps of one token, which need no mask, and runs with several."""

    def sees(self, q, k):
        mask = super().sees(q, k)
        return torch.ones_like(mask) if is_exporting() else mask


@planted(19, "the export fails")
class LengthAsANumber(RunningMeanAttention):
    """Rows are filled up to a multiple of 64 by `int(length)`: a graph that is made of one length fits no other."""

    def sums(self, values):
        length = int(values.shape[1])
        return torch.nn.functional.pad(values, (0, 0, 0, -length % 64)).cumsum(1)[:, :length]
