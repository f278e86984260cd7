"""Topologies that drop, misname or misdeclare what runs through them."""

from __future__ import annotations

from dataclasses import replace

import torch

from planted.fault import planted
from transom.core.topology import Output
from transom.registry.manager import get

DECODER, ENCODER = get("topology", "decoder"), get("topology", "encoder")


@planted(7, "hidden states with padding")
class DropsItsMask(DECODER):
    """The mask is taken and not handed on."""

    def forward(self, *, attention_mask=None, **given):
        return super().forward(**given)


@planted(7, "logits with padding")
class HeadsWithoutMask(ENCODER):
    """Heads are read without the mask: one of whole sequences pools padding."""

    def read_heads(self, hidden, mask, state=None):
        return super().read_heads(hidden, None, state)


@planted(10, "a head that needs all tokens, read off the later ones")
class PoolsWhatIsNew(DECODER):
    """Heads are read without the state: one of whole sequences pools the tokens of the last chunk alone."""

    def read_heads(self, hidden, mask, state=None):
        return super().read_heads(hidden, mask)


@planted(10, "the logits differs")
class StandsStill(DECODER):
    """The state that came in is given back."""

    def forward(self, *, state=None, **given):
        out = super().forward(state=state, **given)
        return Output(out.logits, out.hidden, state, out.attentions)


@planted(10, "the state has other names")
class NamesTwice(DECODER):
    """States are named without their layer: those of all layers bear the same names."""

    def declared(self):
        return {name.rpartition(".")[2]: rule for name, rule in super().declared().items()}


@planted(0, "`generates`")
class GeneratesUndeclared(DECODER):
    """It goes step by step, and does not declare `generates`."""

    generates = False


@planted(10, "attention_mask")
class TakesUndeclared(DECODER):
    """Its graph reads a mask that it does not declare among its inputs."""

    def graphs(self, **given):
        graph = super().graphs(**given)["model"]
        shown = {name: put for name, put in graph.inputs.items() if name != "attention_mask"}
        return {"model": replace(graph, inputs=shown)}


@planted(10, "a graph gives other outputs")
class GivesUndeclared(ENCODER):
    """Its graph gives hidden states that it does not declare."""

    def graphs(self, **given):
        graph = super().graphs(**given)["model"]
        return {"model": replace(graph, outputs={n: dims for n, dims in graph.outputs.items() if n != "hidden"})}


@planted(6, "does not know what comes first")
class DropsItsOrder(ENCODER):
    """Rows come with an order of their own, and all tokens are told at once: nothing is before what is asked for."""

    def forward(self, *, order=None, asked=None, **given):
        return super().forward(order=None if order is None else torch.ones_like(order), asked=asked, **given)


@planted(10, "segment by segment")
class ForgetsItsSegments(ENCODER):
    """What came in is kept, and not what the segment adds."""

    def forward(self, *, state=None, **given):
        out = super().forward(state=state, **given)
        return Output(out.logits, out.hidden, state, out.attentions)
