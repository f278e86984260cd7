"""One two-sided stack: encoders of text and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...core.stack import Stack
from ...core.topology import Graph, Output, StackRole, Tensors, Topology


class EncoderTopology(Topology):
    """Run one stack in which every token sees the whole input."""

    stacks: ClassVar[Mapping[str, StackRole]] = {"encoder": StackRole(causal=False)}
    encoder: Stack

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Take no options."""

    def forward(
        self,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        logits: bool = True,
        attentions: bool = False,
        **inputs: Tensor,
    ) -> Output:
        """Return hidden states (B, T, C) and the heads' logits for what the embedding reads.

        attention_mask and document_ids are `Stack.forward`'s. Without `logits` the heads are left out.
        """
        weights: list[Tensor] | None = [] if attentions else None
        hidden, _ = self.encoder(
            self.take(inputs, "encoder")["encoder"],
            attention_mask=attention_mask,
            document_ids=document_ids,
            weights=weights,
        )
        read = self.read_heads(hidden, attention_mask) if logits else None
        return Output(read, hidden, attentions=None if weights is None else tuple(weights))

    def graphs(self) -> Mapping[str, Graph]:
        """Declare one graph, from inputs to hidden states and logits."""

        def run(inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
            out = self(**inputs)
            return self.logits_by_name(out.logits) | {"hidden": out.hidden}, {}

        columns = "sequence" if self.encoder.embedding.maskable else "patches"
        outputs = self.logits_dims(columns) | {"hidden": ("batch", columns, "width")}
        return {"model": Graph(self.encoder.inputs(), outputs, {}, {}, run)}
