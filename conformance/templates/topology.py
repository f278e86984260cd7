"""One causal stack that gives the next token's logits, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from transom.core import Remembered, Topology


class NewTopology(Topology):
    """Run one stack in which tokens see what came before, and read the heads at each token."""

    # Its options stand directly under `model` in a spec; those of several stacks would stand under their names.
    stacks: ClassVar[Mapping[str, Topology.StackRole]] = {"decoder": Topology.StackRole(causal=True)}
    generates: ClassVar[bool] = True
    decoder: Topology.Stack

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Take no options."""

    def forward(
        self,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        state: Topology.State | None = None,
        logits: bool = True,
        attentions: bool = False,
        **inputs: Tensor,
    ) -> Topology.Output:
        """Return hidden states (B, T, C) and logits (B, T, V) for `input_ids` (B, T), or what the embedding reads.

        attention_mask (B, T): 1 at real tokens, anywhere in a row. document_ids (B, T): rows of several documents, kept
        apart. state: what the tokens before left. Without `logits` the heads are left out; with `attentions` the
        weights of each layer come along.
        """
        watch = Topology.Watch.over(attentions)
        hidden, after = self.decoder(
            self.take(inputs, "decoder")["decoder"],
            attention_mask=attention_mask,
            document_ids=document_ids,
            state=state,
            watch=watch,
        )
        read = self.read_heads(hidden, attention_mask, state) if logits else None
        return Topology.Output(read, hidden, after, watch.shown)

    def declared(self) -> Mapping[str, Remembered]:
        """Declare the stack's state."""
        return self.decoder.declared()

    def empty_state(self, batch: int, room: int | None = None) -> Topology.State:
        """Return the state before the first token, for `batch` rows; with `room` for so many columns."""
        return self.decoder.empty_state(batch, room)

    def graphs(self, *, last: bool = False) -> Mapping[str, Topology.Graph]:
        """Declare what is exported: one graph, a step of any number of tokens."""
        return {"model": self.step_graph("decoder", last=last)}
