"""Text to tokens and back for a run's model, which takes its steps as the loop of generation asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.data import TextField
from ..core.stack import Stack
from ..core.state import State
from ..core.topology import Output, Topology
from ..data import Tokenizer
from ..errors import CheckpointError, InputError
from ..registry.compose import build_data
from .compiled import CompiledStep
from .run import AnyRun, load, read_run

Ids = NDArray[np.int64]


class Stepper:
    """Give the logits of a model of one stack step by step, as `generation.Stepper` says."""

    prefix = ""
    spare = 256  # columns that a state has room for beyond those that it needs, at least

    def __init__(self, model: Topology, vocab_size: int, *, compiled: bool = False) -> None:
        """`vocab_size`: of the tokenizer; logits that the model has beyond it stand for nothing.

        `compiled`: whether steps of one token a row are taken by `CompiledStep`; those of several never are.
        """
        self.model = model
        self.device = next(model.parameters()).device
        self.compiled = CompiledStep(model, self.prefix) if compiled else None
        self.max_seq_len: int = model.spec.model.max_seq_len
        self.vocab_size = vocab_size
        self.edges = {edge for stack in model.modules() if isinstance(stack, Stack) for edge in stack.edges}

    def start(self, batch: int) -> State:
        """Return the empty state of `batch` rows."""
        return self.model.empty_state(batch, room=0)

    @torch.inference_mode()
    def step(self, input_ids: Ids, attention_mask: Ids | None, state: Any) -> tuple[NDArray[np.float32], Any]:
        """Return the logits (B, V) after each row's last real token of input_ids (B, T), and the next state.

        attention_mask (B, T) has 0 at padding, which stands on the right.
        """
        out = self._run(input_ids, attention_mask, state, logits=False)
        if attention_mask is None:
            last = out.hidden[:, -1:]
        else:
            column = (self._there(attention_mask).sum(1) - 1).clamp(min=0)
            last = out.hidden[torch.arange(len(column), device=self.device), column].unsqueeze(1)
        return self.model.head(last)[:, 0, : self.vocab_size].float().cpu().numpy(), out.state

    @torch.inference_mode()
    def score(self, input_ids: Ids, attention_mask: Ids | None, state: Any) -> tuple[NDArray[np.float32], Any]:
        """Do as `step` does, and return the logits (B, T, V) after each token."""
        out = self._run(input_ids, attention_mask, state, logits=True)
        return out.logits[..., : self.vocab_size].float().cpu().numpy(), out.state

    @torch.inference_mode()
    def rewind(self, state: State, dropped: Ids, before: State, input_ids: Ids, attention_mask: Ids) -> State:
        """Return the state without the last `dropped` (B,) tokens of each row, as `generation.Scorer` says.

        A state that a layer forgets in is made again, of `before` and what is kept.
        """
        if state.rewinder is not None:
            return state.rewind(self._there(dropped))
        behind = attention_mask[:, ::-1].cumsum(1)[:, ::-1]
        kept = attention_mask * (behind > dropped[:, None])
        width = 1 + max(np.flatnonzero(kept.any(0)).tolist(), default=0)
        again = self._run(input_ids[:, :width], kept[:, :width], before, logits=False).state
        assert again is not None
        return again

    def _run(self, input_ids: Ids, attention_mask: Ids | None, state: State, *, logits: bool) -> Output:
        ids = self._there(input_ids)
        inputs = {self.prefix + "input_ids": ids}
        if attention_mask is not None:
            inputs[self.prefix + "attention_mask"] = self._there(attention_mask)
        columns = state.columns + input_ids.shape[1]
        assert state.room is not None
        if columns > state.room:  # twice the room each time: a token is copied once or twice on the whole
            state = self.model.widen(state, max(columns + self.spare, 2 * state.room))
        if self.compiled is None:
            return cast(Output, self.model(**inputs, state=state, logits=logits))
        if not logits and self.compiled.serves(ids, inputs, state):
            return self.compiled(ids, state)
        with torch.compiler.set_stance("force_eager"):  # any length would have a graph of its own
            return cast(Output, self.model(**inputs, state=state, logits=logits))

    def _there(self, array: Ids) -> Tensor:
        return torch.from_numpy(array).to(self.device)


class SourceStepper(Stepper):
    """Give the logits of a model that writes with sources before its eyes, one for each row."""

    prefix = "decoder_"

    def __init__(
        self, model: Topology, vocab_size: int, sources: Sequence[Sequence[int]], *, compiled: bool = False
    ) -> None:
        super().__init__(model, vocab_size, compiled=compiled)
        width, device = max(map(len, sources)), self.device
        self.ids = torch.tensor([[*source, *[0] * (width - len(source))] for source in sources], device=device)
        self.mask = torch.tensor([[1] * len(source) + [0] * (width - len(source)) for source in sources], device=device)

    @torch.inference_mode()
    def start(self, batch: int) -> State:
        """Return the state after the sources were read."""
        assert batch == len(self.ids)
        with nullcontext() if self.compiled is None else torch.compiler.set_stance("force_eager"):
            started: State = self.model.start(  # type: ignore[operator]
                input_ids=self.ids, attention_mask=self.mask, room=0
            )
        return started


@dataclass(frozen=True)
class Writing:
    """Hold what `generation.generate` needs to write for some prompts.

    `prompts`: the tokens that each row begins with. `eos_id`: the tokens of which each ends a text.
    """

    stepper: Stepper
    prompts: list[list[int]]
    tokenizer: Tokenizer
    eos_id: tuple[int, ...]


def drafting(run: AnyRun, ready: Writing) -> Stepper:
    """Return the model of a run as a stepper that can run ahead of another's, which is `ready` to write.

    Raises:
        CheckpointError: as `writing`; or its model reads a source, or its tokenizer is another one.
    """
    found = read_run(run)
    if isinstance(ready.stepper, SourceStepper):
        raise CheckpointError(f"{found.folder}: can't be a draft for a model that reads a source")
    stepper = writing(found, []).stepper
    if isinstance(stepper, SourceStepper):
        raise CheckpointError(f"{found.folder}: can't be a draft: its model reads a source")
    assert found.tokenizer is not None
    if found.tokenizer.to_json() != ready.tokenizer.to_json():
        raise CheckpointError(f"{found.folder}: can't be a draft: its tokenizer is not the model's")
    return stepper


def writing(run: AnyRun, prompts: Sequence[str], *, device: str = "cpu", compiled: bool = False) -> Writing:
    """Return how a run's model continues prompts; one that reads a source takes each prompt as such.

    `device`: where the model is put. `compiled`: whether its steps are (see `CompiledStep`).

    Raises:
        CheckpointError: the folder is no run, has no weights, or its model does not write text.
        InputError: a source is longer than the model reads, or there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: PyTorch sees no CUDA device here: use cpu")
    found = read_run(run)
    model, tokenizer = load(found).to(device), found.tokenizer
    if not model.generates or tokenizer is None:
        why = "its data is no text" if model.generates else f"topology '{model.name}' gives no next tokens"
        raise CheckpointError(f"{found.folder}: can't write text: {why}")
    vocabulary = tokenizer.vocabulary
    rows = tokenizer.encode_batch(prompts)
    if len(model.stacks) == 1:
        field = next(field for field in build_data(found.spec).fields.values() if isinstance(field, TextField))
        begun = [[vocabulary.bos, *row] if field.opened else row for row in rows]
        stepper = Stepper(model, vocabulary.size, compiled=compiled)
        return Writing(stepper, begun, tokenizer, vocabulary.ends)
    sources = [[*row, vocabulary.eos] for row in rows]
    most = found.spec.model.max_seq_len
    for number, source in enumerate(sources):
        if len(source) > most:
            raise InputError(f"prompt {number} has {len(source)} tokens, but the model reads {most} (max_seq_len)")
    reader = SourceStepper(model, vocabulary.size, sources or [[vocabulary.eos]], compiled=compiled)
    return Writing(reader, [[vocabulary.bos] for _ in rows], tokenizer, vocabulary.ends)
