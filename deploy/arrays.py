"""Run an exported folder with ONNX Runtime and numpy alone: logits, hidden states, and text token by token."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..generation import Generation, Sampling, Stepper
from ..generation import generate as write
from .manifest import MASK, GraphFacts, Manifest, TensorFacts, is_mask
from .session import Values, chosen, empty_state, sessions, widened

PIECE = 256  # tokens of a long prompt that are read at once
ROOM = 256  # slots that a state begins with, where rows may hold as many tokens
Ids = NDArray[np.int64]
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Held:
    """Hold what a model remembers of some rows.

    `values`: its state. `mask` (B, S) int64: which of all columns since the first step were real tokens. `room`: for
    how many tokens it has slots.
    """

    values: Values
    mask: Ids
    room: int

    @property
    def seen(self) -> Ids:
        """Return how many real tokens each row has had, (B,) int64."""
        seen: Ids = self.mask.sum(axis=1)
        return seen


class ArrayRuntime:
    """Run the graphs of a folder that `export` wrote.

    It is a `Stepper` where its model writes tokens and reads no source. `provider`: the ONNX Runtime execution provider
    in use; the fastest one that runs here unless given. `threads`: for each operator; 0 leaves it to ONNX Runtime.

    Raises:
        ExportError: a file is missing or altered, or the provider does not run here.
    """

    def __init__(self, folder: str | os.PathLike[str], provider: str | None = None, threads: int = 0) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.manifest.check_files(self.folder)
        self.provider = chosen(provider)
        self._sessions = sessions(self.folder, self.manifest, self.provider, threads)
        graphs = self.manifest.graphs
        stepping = [name for name, facts in graphs.items() if facts.steps]
        # Who answers once a sequence is no writer of tokens, though it takes steps.
        writing = self.manifest.generates and len(self.outputs["logits"].dims) == 3
        self._step = next(iter(stepping), None) if writing else None
        self._source = next((name for name, facts in graphs.items() if self._step and not facts.steps), None)

    @property
    def outputs(self) -> dict[str, TensorFacts]:
        """Return what the graphs give beside the state."""
        return {name: tensor for facts in self.manifest.graphs.values() for name, tensor in facts.outputs.items()}

    def graph_with(self, output: str) -> GraphFacts:
        """Return the graph that gives an output: the first of several.

        Raises:
            InputError: no graph gives it.
        """
        return self.manifest.graphs[self._with(output)]

    def _with(self, output: str) -> str:
        name = next((name for name, facts in self.manifest.graphs.items() if output in facts.outputs), None)
        if name is None:
            raise InputError(
                f"{self.folder}: no graph of this model gives {output}; they give {', '.join(self.outputs)}"
            )
        return name

    @property
    def writes(self) -> bool:
        """Say whether the model writes tokens, by `step`."""
        return self._step is not None

    @property
    def reads_source(self) -> bool:
        """Say whether the model writes about a source, which `read` encodes."""
        return self._source is not None

    @property
    def edges(self) -> tuple[int, ...]:
        """Say beyond which lengths a row's state can't be used that was begun before."""
        return tuple(self.manifest.edges)

    @property
    def max_seq_len(self) -> int:
        """Say how many real tokens a row may hold."""
        return self.manifest.max_seq_len

    @property
    def vocab_size(self) -> int:
        """Say how many token ids there are; 0 for a model that reads no text."""
        return self.manifest.vocab_size or 0

    # -- reading a whole input --------------------------------------------------------------------------------------

    def encode(self, **inputs: NDArray[Any]) -> NDArray[Any]:
        """Return the hidden states (B, T, C) of a model that sees its whole input at once, 0 at padding.

        The inputs are those of `manifest.graphs`; an attention mask that is left out is all ones.
        """
        return self.whole("hidden", inputs)[0]

    def classify(self, **inputs: NDArray[Any]) -> NDArray[Any]:
        """Return the logits of a model that sees its whole input at once: (B, classes), or (B, T, V) per token."""
        return self.whole("logits", inputs)[0]

    def whole(self, output: str, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return an output for a whole input, and the mask (B, T) of its real columns, all ones where it has none.

        Raises:
            InputError: no graph gives it, or the model gives it step by step.
        """
        found, _, given = self._whole(output, inputs)
        mask = next((given[name] for name in given if name == MASK), None)
        return found, np.ones(found.shape[:2], dtype=np.int64) if mask is None else mask

    def read_on(self, output: str, kept: Values | None = None, **inputs: NDArray[Any]) -> tuple[NDArray[Any], Values]:
        """Return an output, `hidden` or `logits`, for the next segment of each row's text, and what is kept of it.

        `kept`: what the segment before gave; None for the first. Each row's kept and new tokens together are at most
        `max_seq_len`.

        Raises:
            InputError: the model keeps nothing of earlier segments.
        """
        if not self.manifest.state or self.manifest.generates:
            raise InputError(f"{self.folder}: this model keeps nothing of earlier segments: use encode or classify")
        return self._whole(output, inputs, kept)[:2]

    def _whole(
        self, output: str, inputs: Mapping[str, NDArray[Any]], kept: Values | None = None
    ) -> tuple[NDArray[Any], Values, dict[str, NDArray[Any]]]:
        if self._step is not None:
            raise InputError(f"{self.folder}: this model writes tokens step by step: use start and step, or generate")
        name = self._with(output)
        past = None if kept is None else (kept["pos"].numpy() >= 0).sum(axis=1)
        given = self._with_mask(name, inputs, past)
        if kept is None:
            longest = max((array.shape[1] for array in given.values() if array.ndim > 1), default=0)
            kept = empty_state(self.manifest.state, len(next(iter(given.values()))), longest)
        outputs, after = self._sessions[name].run(given, {n: kept[n] for n in self.manifest.graphs[name].takes})
        return outputs[output], after, given

    # -- writing token by token -------------------------------------------------------------------------------------

    def start(self, batch: int) -> Held:
        """Give the empty state of `batch` rows.

        Raises:
            InputError: the model writes nothing, or reads a source first.
        """
        if self._step is None:
            raise InputError(f"{self.folder}: this model writes no tokens: use encode or classify")
        if self._source is not None:
            raise InputError(f"{self.folder}: this model reads a source first: use read(sources), which can start")
        return self._begun(batch, {})

    def read(self, sources: Sequence[Sequence[int]] | Mapping[str, NDArray[Any]]) -> Writer:
        """Encode sources, a row each, and return the stepper that writes about them.

        They are token ids, or else the inputs of the graph that reads them, by name.

        Raises:
            InputError: the model reads no source, or not such ones.
        """
        if self._source is None or self._step is None:
            raise InputError(f"{self.folder}: this model reads no source: use start")
        if not isinstance(sources, Mapping):
            ids, mask = padded(sources)
            sources = {name: mask if is_mask(name) else ids for name in self._inputs(self._source)}
        given = self._with_mask(self._source, sources)
        _, primed = self._sessions[self._source].run(given, {})
        return Writer(self, self._begun(len(next(iter(given.values()))), primed))

    def _begun(self, batch: int, primed: Values) -> Held:
        room = min(ROOM, self.max_seq_len)
        values = {**empty_state(self.manifest.state, batch, room), **primed}
        return Held(values, np.zeros((batch, 0), dtype=np.int64), room)

    def step(self, input_ids: Ids, attention_mask: Ids | None, state: Held) -> tuple[NDArray[np.float32], Held]:
        """Take in tokens (B, T) and give the logits (B, V) after each row's last real one, as `Stepper.step` says.

        The state that is given is used up: what has slots is written where it stands.

        Raises:
            InputError: ids that do not exist, or more real tokens than `max_seq_len`.
        """
        assert self._step is not None, "a state comes from start"
        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
        if mask.shape[1] > self.max_seq_len:  # most of it is padding, and graphs have places for some alone
            input_ids, mask = _to_the_left(input_ids, mask)
        seen = state.seen + mask.sum(axis=1)
        self._check_length(seen)
        behind = np.searchsorted(self.edges, state.seen)
        if (crossed := (state.seen > 0) & (behind < np.searchsorted(self.edges, seen))).any():
            edge = self.edges[int(behind[crossed].min())]
            raise InputError(
                f"a state of a row of at most {edge} tokens can't go on beyond them; begin anew with all its tokens"
            )
        state = self._with_room(state, int(state.seen.max(initial=0)) + mask.shape[1])
        if len(mask) > 1 or mask.shape[1] <= PIECE or self.edges:
            return self._advance(input_ids, mask, state)
        # Piece by piece no token is scored against later pieces, and what is made of a piece stays in a cache.
        input_ids, mask = _to_the_left(input_ids, mask)
        for first in range(0, mask.shape[1], PIECE):
            here = slice(first, first + PIECE)
            logits, state = self._advance(input_ids[:, here], mask[:, here], state)
        return logits, state

    def _advance(self, input_ids: Ids, mask: Ids, state: Held) -> tuple[NDArray[np.float32], Held]:
        """Do as `step` does, for tokens that there are slots for."""
        assert self._step is not None
        covered = np.concatenate([state.mask, mask], axis=1)
        given = {name: covered if is_mask(name) else input_ids for name in self._inputs(self._step)}
        session = self._sessions[self._step]
        outputs, after = session.run(given, {name: state.values[name] for name in session.facts.takes})
        logits = outputs["logits"]
        if session.facts.outputs["logits"].dims[1] == 1:
            last = np.zeros(len(mask), dtype=np.int64)
        else:  # the last real column; of a row that has none, whose logits nobody reads, the last of all
            last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
        # What the logits hold beyond the tokenizer's tokens stands for nothing.
        logits = logits[np.arange(len(last)), last, : self.vocab_size]
        return logits.astype(np.float32, copy=False), Held({**state.values, **after}, covered, state.room)

    def _with_room(self, state: Held, tokens: int) -> Held:
        """Return a state that has slots for so many tokens: twice as many as before, as long as that is not enough."""
        room = state.room
        while room < tokens:
            room *= 2
        if room == state.room:
            return state
        used = int(state.seen.max(initial=0))
        return Held(widened(self.manifest.state, state.values, room, used), state.mask, room)

    def _check_length(self, tokens: NDArray[Any]) -> None:
        if tokens.size and tokens.max() > self.max_seq_len:
            raise InputError(
                f"{tokens.max()} tokens in a row; this model takes at most max_seq_len = {self.max_seq_len}"
            )

    def _inputs(self, graph: str) -> list[str]:
        return list(self.manifest.graphs[graph].inputs)

    def _with_mask(
        self, graph: str, inputs: Mapping[str, NDArray[Any]], past: NDArray[Any] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Add what was left out, masks that are all ones and what is optional, of the ids' shape; check the lengths.

        `past` (B,): how many tokens are seen besides.
        """
        given = dict(inputs)
        for name, facts in self.manifest.graphs[graph].inputs.items():
            if facts.optional and name not in given and "input_ids" in given:
                given[name] = np.zeros_like(given["input_ids"])
            ids = given.get(name.replace("attention_mask", "input_ids"))
            if name not in given and ids is not None:
                given[name] = np.ones_like(ids)
            if is_mask(name) and name in given:
                self._check_length(given[name].sum(axis=-1) + (0 if past is None else past))
        return given


class Writer:
    """Be the `Stepper` of a model that has read its sources."""

    def __init__(self, runtime: ArrayRuntime, begun: Held) -> None:
        self._runtime = runtime
        self._begun = begun
        self.max_seq_len = runtime.max_seq_len
        self.vocab_size = runtime.vocab_size
        self.edges = runtime.edges

    def start(self, batch: int) -> Held:
        """Give the state of the sources, before the first token; `batch` is the number of sources."""
        if batch != len(self._begun.seen):
            raise InputError(f"{len(self._begun.seen)} sources were read, so there are as many rows, not {batch}")
        return self._begun

    def step(self, input_ids: Ids, attention_mask: Ids | None, state: Held) -> tuple[NDArray[np.float32], Held]:
        """Do as `ArrayRuntime.step` does."""
        return self._runtime.step(input_ids, attention_mask, state)


def generate(
    folder: str | os.PathLike[str] | ArrayRuntime,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    decode: Decode | None = None,
    on_token: Callable[[int, str], None] | None = None,
) -> list[Generation]:
    """Continue each prompt (token ids) with an exported model, or answer it where the model reads a source.

    Tokens are those that PyTorch gives. Rows end at `sampling.eos_id`, or at the tokenizer's where that is None.
    `decode` and `on_token` are `generation.generate`'s.

    Raises:
        ExportError: the folder is not whole.
        InputError: prompts, sampling and model do not fit each other.
    """
    runtime = folder if isinstance(folder, ArrayRuntime) else ArrayRuntime(folder)
    return write(*begun(runtime, prompts, sampling), decode, on_token)


def begun(
    runtime: ArrayRuntime, prompts: Sequence[Sequence[int]], sampling: Sampling, stop_ids: Sequence[int] = ()
) -> tuple[Stepper, Sequence[Sequence[int]], Sampling]:
    """Return what `generation.generate` and `generation.stream` take, for what is asked of an exported model.

    Rows end at `sampling.eos_id`, or at the tokenizer's where that is None, and at `stop_ids`.

    Raises:
        InputError: the model reads a source, and no tokenizer says what an answer begins with.
    """
    special, manifest = runtime.manifest.special_ids, runtime.manifest
    ends = sampling.eos_ids
    if sampling.eos_id is None and "eos" in special:
        ends = (special["eos"], *manifest.stop_ids)
    sampling = replace(sampling, eos_id=(*ends, *stop_ids))
    if not runtime.reads_source or not prompts:
        return runtime, prompts, sampling
    if "bos" not in special:
        raise InputError(f"{runtime.folder}: has no tokenizer, so the opening token is unknown: use read, and generate")
    return runtime.read(prompts), [[special["bos"]]] * len(prompts), sampling


def _to_the_left(input_ids: Ids, mask: Ids) -> tuple[Ids, Ids]:
    """Return tokens and mask (B, T) without the columns that no row needs, padding on the right."""
    order = np.argsort(mask == 0, axis=1, kind="stable")[:, : max(1, int(mask.sum(axis=1).max(initial=0)))]
    return np.take_along_axis(input_ids, order, axis=1), np.take_along_axis(mask, order, axis=1)


def padded(rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Return ids and mask (B, T) of rows of ids, padded on the right."""
    longest = max((len(row) for row in rows), default=0)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask
