"""One causal stack: language models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...core.stack import Stack
from ...core.state import Declared, State
from ...core.topology import Graph, Output, StackRole, Topology
from ...core.watch import Watch


class DecoderTopology(Topology):
    """Run one stack in which tokens see what came before, and read the heads at each token."""

    stacks: ClassVar[Mapping[str, StackRole]] = {"decoder": StackRole(causal=True)}
    generates: ClassVar[bool] = True
    decoder: Stack

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Take no options."""

    def forward(
        self,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        state: State | None = None,
        logits: bool = True,
        attentions: bool = False,
        **inputs: Tensor,
    ) -> Output:
        """Return hidden states and logits of each token of `input_ids` (B, T), or of what the embedding reads.

        attention_mask, document_ids and state are `Stack.forward`'s. Without `logits` the heads are left out.
        """
        watch = Watch.over(attentions)
        hidden, after = self.decoder(
            self.take(inputs, "decoder")["decoder"],
            attention_mask=attention_mask,
            document_ids=document_ids,
            state=state,
            watch=watch,
        )
        read = self.read_heads(hidden, attention_mask, state) if logits else None
        return Output(read, hidden, after, watch.shown)

    def declared(self) -> Declared:
        """Declare the stack's state."""
        return self.decoder.declared()

    def empty_state(self, batch: int, room: int | None = None) -> State:
        """Return the state before the first token; `room` is `Topology.empty_state`'s."""
        return self.decoder.empty_state(batch, room)

    def graphs(self, *, last: bool = False) -> Mapping[str, Graph]:
        """Declare one graph, a step of any number of tokens."""
        return {"model": self.step_graph("decoder", last=last)}
