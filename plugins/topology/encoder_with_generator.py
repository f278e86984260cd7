"""An encoder, and a smaller one beside it that makes up tokens for it to judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...core.stack import Stack
from ...core.topology import Graph, Output, StackRole, Tensors, Topology
from ...core.watch import Watch


class EncoderWithGeneratorTopology(Topology):
    """Run one two-sided stack, as an encoder; another one, of the same input, serves its training (Clark et al. 2020).

    The generator's head is read by whoever trains them. What is run and exported is the encoder alone.
    """

    stacks: ClassVar[Mapping[str, StackRole]] = {
        "generator": StackRole(causal=False),
        "encoder": StackRole(causal=False),
    }
    generator: Stack
    encoder: Stack

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """generator_width: of the generator's vectors; the model's when left out. share_embedding: whether it reads
        the encoder's table of tokens. generator_head: the name of the head that reads the generator.
        """

        generator_width: int | None = None
        share_embedding: bool = True
        generator_head: str = "generated"

        def __post_init__(self) -> None:
            if self.generator_width is not None and self.generator_width < 1:
                raise ValueError(f"generator_width: {self.generator_width} is not a width; at least 1")

    config: Config

    @classmethod
    def lenders(cls, config: Config) -> Mapping[str, str]:
        """Let the generator read with the encoder's table where the options say so."""
        return {"generator": "encoder"} if config.share_embedding else {}

    @classmethod
    def widths(cls, config: Config) -> Mapping[str, int]:
        """Give the generator the width that the options say."""
        return {} if config.generator_width is None else {"generator": config.generator_width}

    @classmethod
    def readers(cls, config: Config) -> Mapping[str, str]:
        """Let one head read the generator."""
        return {config.generator_head: "generator"}

    def forward(
        self,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        logits: bool = True,
        attentions: bool = False,
        **inputs: Tensor,
    ) -> Output:
        """Return the encoder's hidden states (B, T, C) and its heads' logits for what the embedding reads.

        attention_mask and document_ids are `Stack.forward`'s. Without `logits` the heads are left out.
        """
        watch = Watch.over(attentions)
        hidden, _ = self.encoder(
            self.take(inputs, "encoder")["encoder"],
            attention_mask=attention_mask,
            document_ids=document_ids,
            watch=watch,
        )
        read = self.read_heads(hidden, attention_mask) if logits else None
        return Output(read, hidden, attentions=watch.shown)

    def generate(
        self, *, attention_mask: Tensor | None = None, document_ids: Tensor | None = None, **inputs: Tensor
    ) -> Tensor:
        """Return the generator's hidden states (B, T, its own width)."""
        given = self.take(inputs, "generator")["generator"]
        hidden: Tensor = self.generator(given, attention_mask=attention_mask, document_ids=document_ids)[0]
        return hidden

    def graphs(self, *, last: bool = False) -> Mapping[str, Graph]:
        """Declare one graph, from inputs to the encoder's hidden states and logits."""

        def run(inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
            out = self(**inputs)
            return self.logits_by_name(out.logits) | {"hidden": out.hidden}, {}

        columns = "sequence" if self.encoder.embedding.maskable else "patches"
        outputs = self.logits_dims(columns) | {"hidden": ("batch", columns, "width")}
        return {"model": Graph(self.encoder.inputs(), outputs, {}, {}, run)}
