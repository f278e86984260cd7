"""One two-sided stack: encoders of text and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ...core.head import Head
from ...core.segments import Segments
from ...core.stack import Stack
from ...core.state import Declared, State
from ...core.tokens import Permuted
from ...core.topology import Graph, Output, StackRole, Tensors, Topology
from ...core.watch import Watch
from ...errors import InputError


class EncoderTopology(Topology):
    """Run one stack in which every token sees the whole input, and earlier segments of its text where it remembers."""

    stacks: ClassVar[Mapping[str, StackRole]] = {"encoder": StackRole(causal=False)}
    permutes: ClassVar[bool] = True
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ({}, {"memory": "all"}, {"memory": 9, "reuse": 5})
    encoder: Stack

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """memory: how many tokens of earlier segments are seen besides the segment's own (Dai et al. 2019).

        reuse: how many first tokens of a segment are kept, which the next one follows (all, when left out).
        """

        memory: int | Literal["all"] = 0
        reuse: int | None = None

        def __post_init__(self) -> None:
            if isinstance(self.memory, int) and self.memory < 0:
                raise ValueError(f"memory: {self.memory} is not a number of tokens; at least 0, or all")
            if self.reuse is not None and (self.reuse < 1 or self.memory == 0):
                raise ValueError(f"reuse: {self.reuse} must be at least 1, and needs a memory to keep them in")

    config: Config

    def __init__(self, config: Config, stacks: Mapping[str, Stack], heads: Mapping[str, Head]) -> None:
        super().__init__(config, stacks, heads)
        length = None if isinstance(config.memory, str) else config.memory
        self._segments = None if length == 0 else Segments(length, config.reuse)
        if self._segments is not None:
            self._check_memory(length)

    def _check_memory(self, length: int | None) -> None:
        """Refuse a memory that a layer can't see, or whose tokens have nowhere to stand."""
        stack = self.encoder
        if (why := stack.bound_to_columns()) is not None:
            raise ValueError(f"memory: {why}")
        if any(rule.grows != "append" for name, rule in stack.declared().items() if name != "seen"):
            raise ValueError("memory: a layer keeps a summary, of which no segment can be taken back")
        if length is None:
            return
        if length >= stack.site.max_seq_len:
            raise ValueError(
                f"memory: {length} tokens and a segment do not fit into max_seq_len {stack.site.max_seq_len}"
            )
        if fixed := [position.name for position in stack.all_positions if not position.relative]:
            raise ValueError(
                f"memory: {length} tokens are kept of a text of any length, and position '{fixed[0]}' has places for "
                "so many only; let memory be all, or take a relative position"
            )

    def forward(
        self,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        order: Tensor | None = None,
        asked: Tensor | None = None,
        state: State | None = None,
        logits: bool = True,
        attentions: bool = False,
        **inputs: Tensor,
    ) -> Output:
        """Return hidden states (B, T, C) and the heads' logits for what the embedding reads.

        attention_mask and document_ids are `Stack.forward`'s, order and asked those of `Permuted`; with `asked` (B, P)
        the results are those of the tokens that are asked for. state: of the segments before, where there is a memory;
        the next one comes with the result. Without `logits` the heads are left out.
        """
        watch = Watch.over(attentions)
        hidden, after = self.encoder(
            self.take(inputs, "encoder")["encoder"],
            attention_mask=attention_mask,
            document_ids=document_ids,
            state=state,
            watch=watch,
            permuted=Permuted.of(order, asked),
        )
        if state is not None and after is not None and self._segments is not None:
            after = self._segments.cut(self.encoder.declared(), state, after)
        read = self.read_heads(hidden, attention_mask if asked is None else None) if logits else None
        return Output(read, hidden, after, watch.shown)

    def declared(self) -> Declared:
        """Declare what is kept of earlier segments."""
        return {} if self._segments is None else self._segments.declared(self.encoder.declared())

    def empty_state(self, batch: int, room: int | None = None) -> State:
        """Return the state before the first segment; it has no room, as each segment takes tokens away."""
        if self._segments is None:
            return super().empty_state(batch)
        if room is not None:
            raise InputError(f"room: a model of topology {self.name!r} keeps segments, and has none for tokens to come")
        return self._segments.empty(self.encoder.declared(), batch, next(self.encoder.parameters()))

    def graphs(self, *, last: bool = False) -> Mapping[str, Graph]:
        """Declare one graph, from inputs to hidden states and logits; a step for each segment where it remembers."""

        def run(inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
            out = self(**inputs, state=State(state, padded=True) if state else None)
            after = {} if out.state is None else out.state.tensors
            return self.logits_by_name(out.logits) | {"hidden": out.hidden}, after

        columns = "sequence" if self.encoder.embedding.maskable else "patches"
        outputs = self.logits_dims(columns) | {"hidden": ("batch", columns, "width")}
        state = self.declared()
        return {"model": Graph(self.encoder.inputs(), outputs, state, state, run)}
