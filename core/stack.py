"""The stack: embedding, positions, blocks and a last norm, run over one sequence with or without a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from .attention import is_exporting
from .block import Block
from .component import Component, Site
from .context import Context
from .embedding import Borrowed, Embedding
from .inputs import Input
from .memory import Memory, primed
from .norm import Norm
from .position import Position, Positions
from .slots import MASK, growing, in_place, run_in_slots
from .state import PAST, POS, SEEN, Declared, Memories, Remembered, State, first_crossed, rewound
from .tokens import ORDER, Packing, Permuted, Tokens, document_positions, with_asked
from .watch import UNWATCHED, Watch


class Stack(nn.Module):
    """Run blocks over embedded inputs; every topology is made of these.

    `site.causal` says whether tokens may not see later ones. An `embedding` that is `Borrowed` is another stack's.
    """

    def __init__(
        self,
        site: Site,
        embedding: Embedding | Borrowed,
        positions: Sequence[Position],
        blocks: Sequence[Block],
        norm: Norm | None,
    ) -> None:
        super().__init__()
        self.site = site
        self.embedding = embedding
        self.positions = nn.ModuleList(positions)
        self._positions = Positions(positions)
        own = [position for block in blocks if block.positions is not None for position in block.own_positions]
        self.all_positions = (*positions, *own)
        self._most = min([site.max_seq_len, *(position.most() for position in self.all_positions)])
        self.edges = sorted({edge for position in self.all_positions for edge in position.edges()})
        self.layers = nn.ModuleList(blocks)
        self.norm = norm
        self.checkpointed = 0  # layers, the first ones, whose activations are computed twice to save memory
        parts: list[Component] = [
            *self.all_positions,
            *(part for block in blocks for part in block.sublayers().values()),
        ]
        self._marks = {name: put for part in parts for name, put in part.reads().items()}
        # By layer and sublayer; a sublayer that declares nothing is left out, and handed no state.
        self._state_names = [
            {
                sub: {key: f"layers.{i}.{sub}.{key}" for key in layer.declared()}
                for sub, layer in block.sublayers().items()
                if layer.declared()
            }
            for i, block in enumerate(blocks)
        ]
        self._growing = [growing(block) for block in blocks]
        self._declared = self._declare()
        self._appends = POS in self._declared
        self._places_on: dict[torch.device, Tensor] = {}
        self._beside = any("beside" in block.names for block in blocks)

    @property
    def blocks(self) -> Sequence[Block]:
        """Return the layers in order."""
        return cast(Sequence[Block], self.layers)

    # -- what it takes and remembers ----------------------------------------------------------------------------------

    def feeds(self) -> dict[str, Input]:
        """Declare the raw inputs that are read: by the embedding, by layers and by positions."""
        return {**self._marks, **self.embedding.inputs()}

    def inputs(self) -> dict[str, Input]:
        """Declare the raw inputs: all that is read, and the mask of the columns where they are text."""
        inputs = self.feeds()
        if self.embedding.maskable:
            inputs[MASK] = Input(("batch", "sequence"), "int64", high=2)
        return inputs

    def bound_to_columns(self) -> str | None:
        """Return why some layer can't let any tokens see any others; None where all can."""
        for index, block in enumerate(self.blocks):
            parts: dict[str, Any] = block.sublayers()
            lacks = parts["attention"].declares.lacks if "attention" in parts else {}
            if "pairs" in lacks:
                return f"the attention of layer {index} is bound to columns: {lacks['pairs']}"
            if "feedforward" in parts and parts["feedforward"].mixes_tokens:
                return f"the feedforward of layer {index} is bound to columns: it mixes neighbours"
        return None

    def declared(self, *, slots: bool = False) -> Declared:
        """Declare the whole state, by the names of `State.tensors`; with `slots`, that of a state with room."""
        return {name: rule for name, rule in self._declared.items() if not slots or name != POS}

    def _declare(self) -> Declared:
        layers = {
            names[key]: rule
            for block, subs in zip(self.blocks, self._state_names, strict=True)
            for sub, names in subs.items()
            for key, rule in getattr(block, sub).declared().items()
        }
        own = {SEEN: Remembered(("batch",), "fixed", "int64")}
        if any(rule.grows == "append" for rule in layers.values()):
            # Position of each past column, -1 at padding: who is visible follows from it.
            own[POS] = Remembered(("batch", PAST), "append", "int64", fill=-1)
            own |= {mark_name(name): Remembered(("batch", PAST), "append", "int64") for name in self._marks}
        if self._marks and self.site.causal and any(rule.grows == "ring" for rule in layers.values()):
            raise ValueError(
                f"a layer that keeps its newest tokens in a ring does not keep their {', '.join(self._marks)}"
            )
        if any("cross_attention" in block.names for block in self.blocks):
            own["memory_mask"] = Remembered(("batch", "memory"), "static", "int64")
        return own | layers

    def empty_state(self, batch: int, room: int | None = None) -> State:
        """Return the state before the first token, for `batch` rows; with `room` for so many columns in slots."""
        like = next(self.parameters())
        declared = self.declared(slots=room is not None)
        tensors = {n: r.empty(batch, 0, like.dtype, like.device, room=room) for n, r in declared.items()}
        rewinder = partial(rewound, declared=self._declared, edges=self.edges)
        croppable = all(rule.grows in ("append", "static") for n, rule in declared.items() if n != "seen")
        return State(tensors, rewinder=rewinder if croppable else None, room=room)

    def prime(self, state: State, memory: Memory) -> State:
        """Return the state with everything that cross attention keeps of a memory."""
        context = memory.primes()
        tensors = state.tensors | {"memory_mask": memory.kept()}
        for block, subs in zip(self.blocks, self._state_names, strict=True):
            for sub, names in subs.items():
                kept = getattr(block, sub).prime(context)
                tensors.update({names[key]: value for key, value in kept.items()})
        return replace(state, tensors=tensors)

    # -- running ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        state: State | None = None,
        memory: Memory | None = None,
        permuted: Permuted | None = None,
        watch: Watch = UNWATCHED,
    ) -> tuple[Tensor, State | None]:
        """Return hidden states (B, T, C) and the next state, or those of the tokens that `permuted` asks for.

        attention_mask (B, T): 1 at real tokens, anywhere in a row; with a state it may also cover all that came before,
        (B, past + T), of which the last T count. document_ids (B, T): rows of several documents, kept apart, each one
        stretch.

        Raises:
            InputError: shapes that do not fit, too many tokens, documents together with a state, an order that a layer
                can't keep.
        """
        marks = {name: inputs[name] for name in self._marks if name in inputs}
        if marks:
            feeds = self.embedding.inputs()
            inputs = {name: tensor for name, tensor in inputs.items() if name in feeds}
        x = self.embedding(**inputs)
        mask = self._check(x, attention_mask, document_ids, state)
        if permuted is not None:
            self._check_order(permuted.order, x)
            marks[ORDER] = permuted.order
        packing = None if mask is None else Packing.of(mask)
        tokens = own = self._tokens(x, packing, document_ids, state)
        if marks:
            packed = marks if packing is None else {name: packing.pack(mark) for name, mark in marks.items()}
            tokens = own = replace(own, marks=packed)
        x = x if packing is None else packing.pack(x)
        if permuted is not None and permuted.asked is not None:
            x, tokens = self._ask(x, own, permuted.asked if packing is None else packing.dest.gather(1, permuted.asked))
        x = self.embedding.finish(self._positions.add(x, tokens))
        context = self._context(tokens, own, state, watch)
        x, after = self._run(x, context, self._cross(context, state, memory), state)
        x = x if self.norm is None else self.norm(x)
        if tokens is not own:
            x = x[:, own.pos.shape[1] :]
        elif packing is not None:
            x = packing.unpack(x)
        return x, None if state is None else self._next(state, after, own, mask, context)

    def _ask(self, x: Tensor, own: Tokens, asked: Tensor) -> tuple[Tensor, Tokens]:
        """Put behind x (B, T, C) those that are asked for, at its columns asked (B, P), and say who they all are."""
        asking = self.embedding.asking().to(x.dtype).expand(*asked.shape, -1)
        return torch.cat([x, asking], dim=1), with_asked(own, asked)

    def _context(self, tokens: Tokens, own: Tokens, state: State | None, watch: Watch) -> Context:
        """Return what all layers share, for tokens of which `own` are not only asked for."""
        past, slots, used = self._held(state, own)
        return Context(
            tokens, self.site.causal, past, None if state is None else state.seen, positions=self._positions,
            weights=watch.weights, choices=watch.choices, slots=slots, used=used,
            steady=state is not None and state.steady,
            asked=0 if tokens is own else tokens.pos.shape[1] - own.pos.shape[1],
            written=None if state is None or state.room is None else [],
        )  # fmt: skip

    def _run(
        self, x: Tensor, context: Context, cross: Context, state: State | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not is_exporting():
            self._positions.prepare(x, context.tokens)
        # Positions are those of a layer's attention: what stands beside it has none.
        contexts = {"attention": context, "cross_attention": cross, "feedforward": context}
        if self._beside:
            contexts["beside"] = context.at(None)
        tensors: dict[str, Tensor] = {}
        dtype = x.dtype
        for place, (block, subs) in enumerate(zip(self.blocks, self._state_names, strict=True)):
            if x.dtype != dtype and not block.wide:
                x = x.to(dtype)
            here = contexts
            if block.positions is not None:
                own = context.at(block.own_positions)
                here = contexts | {"attention": own, "feedforward": own}
            if state is None:
                if place < self.checkpointed and torch.is_grad_enabled():
                    x, _ = checkpoint(block, x, here, use_reentrant=False)
                else:
                    x, _ = block(x, here)
                continue
            before: dict[str, Memories] = {}
            for sub, names in subs.items():
                before[sub] = {key: state.tensors[name] for key, name in names.items()}
            if state.room is None:
                x, after = block(x, here, before)
            else:
                x, after = run_in_slots(block, x, here, before, self._growing[place], f"layers.{place}")
            for sub, names in subs.items():
                for key, name in names.items():
                    tensors[name] = after[sub][key]
        return x if x.dtype == dtype else x.to(dtype), tensors

    def _tokens(self, x: Tensor, packing: Packing | None, doc: Tensor | None, state: State | None) -> Tokens:
        valid = None if packing is None else packing.valid
        if doc is not None:
            # Padding becomes a document of its own: it stands at the end of a packed row.
            doc = doc if packing is None else packing.pack(doc + 1)
            return Tokens(document_positions(doc), valid, doc)
        if valid is None and (state is None or not state.padded) and not torch.compiler.is_compiling():
            first = 0 if state is None else state.columns  # no row has padding: column and position are one
            return Tokens.in_order(self._places(first, x.shape[1], x.device), first)
        if state is not None and x.shape[1] == 1 and not is_exporting():
            return Tokens(state.seen.unsqueeze(1), valid)
        column = torch.arange(x.shape[1], device=x.device)
        return Tokens(column.unsqueeze(0) if state is None else column + state.seen.unsqueeze(1), valid)

    def _places(self, first: int, count: int, device: torch.device) -> Tensor:
        """Return the positions from `first` on, (1, count), cut from what is kept of all of them."""
        if device not in self._places_on:
            with torch.inference_mode(False):  # what is made in one pass serves all others too
                self._places_on[device] = torch.arange(self.site.max_seq_len, device=device).unsqueeze(0)
        return self._places_on[device].narrow(1, first, count)

    def _held(self, state: State | None, new: Tokens) -> tuple[Tokens | None, Tokens | None, int | None]:
        """Return whose keys a state holds, as a context has it: `past`, `slots`, `used`."""
        if state is None or state.room is None:
            return None if state is None or not self._appends else self._past(state), None, None
        used = state.columns + new.pos.shape[1] if in_place(state) else None
        if used is None or new.first is None or self._marks:
            return None, self._slots(state, new, used), used
        before = Tokens.in_order(self._places(0, new.first, new.pos.device), 0)
        return before if self._appends else None, None, used

    def _past(self, state: State) -> Tokens:
        pos = state.tensors[POS]
        marks = {name: state.tensors[mark_name(name)] for name in self._marks}
        return Tokens(pos, pos >= 0 if state.padded or is_exporting() else None, marks=marks)

    def _slots(self, state: State, new: Tokens, used: int | None) -> Tokens:
        """Return the tokens of all slots, or of those in use: a later one than the last has a later position too."""
        count = cast(int, state.room) if used is None else used
        pos = torch.arange(count, device=new.pos.device).unsqueeze(0)
        if not self._marks:
            return Tokens(pos)
        write = Context(
            new, self.site.causal, slots=Tokens(pos), seen=state.seen, used=used, steady=state.steady
        ).append
        zeros = torch.zeros_like(new.pos)
        marks = {n: write(state.tensors[mark_name(n)], new.marks.get(n, zeros)) for n in self._marks}
        return Tokens(pos, marks=marks)

    def _cross(self, context: Context, state: State | None, memory: Memory | None) -> Context:
        if state is not None and "memory_mask" in state.tensors:
            return primed(state.tensors["memory_mask"], context.tokens, context.weights)
        return context if memory is None else memory.read_by(context.tokens, context.weights)

    def _next(
        self, state: State, after: dict[str, Tensor], tokens: Tokens, mask: Tensor | None, context: Context
    ) -> State:
        count = tokens.pos.shape[1] if tokens.valid is None else tokens.valid.sum(1)
        tensors = state.tensors | after
        tensors["seen"] = state.seen + count
        if state.room is not None:
            if context.slots is not None and context.used is None:  # else they were written where they stand
                tensors |= {mark_name(name): mark for name, mark in context.slots.marks.items()}
        elif self._appends:
            pos = tokens.pos if tokens.valid is None else tokens.pos.masked_fill(~tokens.valid, -1)
            before, rows = state.tensors[POS], state.seen.shape[0]
            if tokens.first is None:
                tensors[POS] = torch.cat([before, pos.expand(rows, -1)], dim=1)
            else:
                tensors[POS] = self._places(0, tokens.first + pos.shape[1], pos.device).expand(rows, -1)
            for name in self._marks:
                mark = tokens.marks.get(name, torch.zeros_like(pos)).expand(rows, -1)
                tensors[mark_name(name)] = torch.cat([state.tensors[mark_name(name)], mark], dim=1)
        columns = state.columns + tokens.pos.shape[1]
        padded = state.padded if mask is None else columns
        return State(tensors, columns, padded, state.rewinder, state.room, state.steady)  # `replace` takes longer

    def _check(self, x: Tensor, mask: Tensor | None, doc: Tensor | None, state: State | None) -> Tensor | None:
        if is_exporting():
            return mask
        batch, length = x.shape[:2]
        if doc is not None:
            if state is not None:
                raise InputError("document_ids together with a state: a state is of one document per row")
            if doc.shape != (batch, length):
                raise InputError(f"document_ids is {tuple(doc.shape)}; the tokens are {(batch, length)}")
        if state is not None and state.seen.shape[0] != batch:
            raise InputError(f"the state is of {state.seen.shape[0]} rows, the inputs of {batch}")
        if mask is not None:
            if not self.embedding.maskable:
                raise InputError("attention_mask: this model's inputs have no padding")
            if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < length:
                raise InputError(f"attention_mask is {tuple(mask.shape)}; the tokens are {(batch, length)}")
            if mask.shape[1] > length:
                past = 0 if state is None else state.columns
                if mask.shape[1] != past + length:
                    raise InputError(
                        f"attention_mask has {mask.shape[1]} columns; {length} for the new tokens, or {past + length} "
                        "with the past"
                    )
                mask = mask[:, past:]
        if state is not None and state.room is not None and state.columns + length > state.room:
            raise InputError(f"{length} tokens after {state.columns}: the state has room for {state.room} columns")
        self._check_length(length, mask, state)
        if state is not None and state.columns and self.edges:
            self._check_edges(length, mask, state)
        return mask

    def _check_order(self, order: Tensor, x: Tensor) -> None:
        if order.shape != x.shape[:2]:
            raise InputError(f"order is {tuple(order.shape)}; the tokens are {tuple(x.shape[:2])}")
        if (why := self.bound_to_columns()) is not None:
            raise InputError(f"order: {why}")

    def _check_length(self, length: int, mask: Tensor | None, state: State | None) -> None:
        most = self._most
        if length + (0 if state is None else state.columns) <= most:
            return
        # Columns may be padding: only now is it worth counting the real ones, which a device must be asked for.
        new = length if mask is None else mask.bool().sum(1)
        total = new if state is None else state.seen + new
        longest = total if isinstance(total, int) else int(total.max()) if total.numel() else 0
        if longest > most:
            which = "max_seq_len =" if most == self.site.max_seq_len else "what its positions have places for:"
            raise InputError(f"{longest} tokens in a row; this model takes at most {which} {most}")

    def _check_edges(self, length: int, mask: Tensor | None, state: State) -> None:
        """Refuse a state that was begun before a length beyond which it can't be used."""
        if state.columns + length <= self.edges[0] or (
            mask is None and not state.padded and state.columns > self.edges[-1]
        ):
            return
        total = state.seen + (length if mask is None else mask.bool().sum(1))
        if (edge := first_crossed(self.edges, state.seen, total)) is not None:
            raise InputError(
                f"a state of a row of at most {edge} tokens can't go on beyond them: positions turn otherwise in "
                "longer rows; begin anew with all of the row's tokens"
            )


def mark_name(name: str) -> str:
    """Return what a state calls the marks of past tokens that an input gave."""
    return f"marks.{name}"
