"""Two stacks, the second reading the first: translation, summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...core.inputs import Input
from ...core.memory import Memory
from ...core.stack import Stack
from ...core.state import Declared, State
from ...core.topology import Graph, Output, StackRole, Tensors, Topology
from ...core.watch import Watch
from ...errors import InputError


class EncoderDecoderTopology(Topology):
    """Read a source with a two-sided stack and write with a causal one that attends to it (Vaswani et al. 2017)."""

    stacks: ClassVar[Mapping[str, StackRole]] = {
        "encoder": StackRole(causal=False),
        "decoder": StackRole(causal=True, memory="encoder", prefix="decoder_"),
    }
    generates: ClassVar[bool] = True
    encoder: Stack
    decoder: Stack

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """share_embedding: the decoder reads the encoder's table of tokens."""

        share_embedding: bool = False

    @classmethod
    def lenders(cls, config: Config) -> Mapping[str, str]:
        """Let the decoder read with the encoder's table where the options say so."""
        return {"decoder": "encoder"} if config.share_embedding else {}

    def forward(
        self,
        *,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        state: State | None = None,
        logits: bool = True,
        attentions: bool = False,
        **inputs: Tensor,
    ) -> Output:
        """Return hidden states and logits of each token of `decoder_input_ids` (B, T) given the source `input_ids`.

        With a `state` made by `start`, the source is part of it and is not given again.

        Raises:
            InputError: inputs that are missing, unknown, or part of the state already.
        """
        watch = Watch.over(attentions)
        memory = None
        if state is None:
            given = self.take(inputs, "encoder", "decoder")
            hidden, _ = self.encoder(given["encoder"], attention_mask=attention_mask, watch=watch)
            memory = Memory(hidden, attention_mask)
        else:
            given = self.take(inputs, "decoder")
            if attention_mask is not None:
                raise InputError("attention_mask together with a state: the state holds the source and its mask")
        hidden, after = self.decoder(
            given["decoder"],
            attention_mask=decoder_attention_mask,
            state=state,
            memory=memory,
            watch=watch,
        )
        read = self.read_heads(hidden, decoder_attention_mask, state) if logits else None
        return Output(read, hidden, after, watch.shown)

    def start(self, *, attention_mask: Tensor | None = None, room: int | None = None, **inputs: Tensor) -> State:
        """Encode a source and return the state before the first token that is written, `room` as in `empty_state`."""
        hidden, _ = self.encoder(self.take(inputs, "encoder")["encoder"], attention_mask=attention_mask)
        return self.decoder.prime(self.empty_state(hidden.shape[0], room), Memory(hidden, attention_mask))

    def declared(self) -> Declared:
        """Declare the decoder's state: its own past, and what cross attention keeps of the source."""
        return self.decoder.declared()

    def empty_state(self, batch: int, room: int | None = None) -> State:
        """Return the state with neither source nor tokens; `room` is `Topology.empty_state`'s."""
        return self.decoder.empty_state(batch, room)

    def graphs(self, *, last: bool = False) -> Mapping[str, Graph]:
        """Declare two graphs: the source to what cross attention keeps of it, and a step of the decoder."""
        static = {name: rule for name, rule in self.declared().items() if rule.grows == "static"}

        def encode(inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
            primed = self.start(room=None, **inputs).tensors
            return {}, {name: primed[name] for name in static}

        source = {name: _renamed(put, "sequence", "memory") for name, put in self.encoder.inputs().items()}
        return {"encoder": Graph(source, {}, {}, static, encode), "decoder": self.step_graph("decoder", last=last)}


def _renamed(put: Input, old: str, new: str) -> Input:
    return Input(tuple(new if d == old else d for d in put.dims), put.dtype, put.high)
