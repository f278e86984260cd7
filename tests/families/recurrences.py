"""How models that carry a state past their tokens are held against the same models made by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peers import apart, checked
from torch import Tensor
from two_sided import masks, there_and_back


def drawn(high: int, length: int = 23) -> Tensor:
    """Draw ids (3, T) below `high`."""
    return torch.randint(high, (3, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def carried_parity(theirs: Any, folder: Path, length: int = 23) -> float:
    """Return the largest error of logits and last hidden states, and check that it is small.

    Compared: plain and padded on both sides, rows padded left with the peer's own rows without padding, in which its
    convolutions read biases; 16 steps with a state; gradients; and the weights on their way back. What the first token
    is must show at the last one, or the state would not be looked at.
    """
    ours, ids = there_and_back(theirs, folder), drawn(theirs.config.vocab_size, length)
    right, left = masks(length)
    whole = ours(input_ids=ids)
    other = ours(input_ids=torch.cat([(ids[:, :1] + 1) % theirs.config.vocab_size, ids[:, 1:]], 1))
    assert (reached := apart(other.logits[:, -1], whole.logits[:, -1])) > 1e-3, reached
    wanted = theirs(input_ids=ids, output_hidden_states=True)
    errors = [apart(whole.logits, wanted.logits), apart(whole.hidden, wanted.hidden_states[-1])]
    wanted = theirs(input_ids=ids, attention_mask=right)
    errors.append(apart(ours(input_ids=ids, attention_mask=right).logits[right.bool()], wanted.logits[right.bool()]))
    found = ours(input_ids=ids, attention_mask=left).logits
    for row, real in enumerate(left.bool()):
        errors.append(apart(found[row, real], theirs(input_ids=ids[row : row + 1, real]).logits[0]))
    errors.append(_steps(ours, ids, whole.logits))
    assert (error := _gradients(theirs, ours, ids)) < 1e-4, error
    return checked(theirs, errors)


def _steps(ours: Any, ids: Tensor, whole: Tensor) -> float:
    """Return how far a prompt and 16 steps are from the whole pass."""
    start = ids.shape[1] - 16
    out = ours(input_ids=ids[:, :start], state=ours.empty_state(len(ids)))
    logits = [out.logits]
    for column in range(start, ids.shape[1]):
        out = ours(input_ids=ids[:, column : column + 1], state=out.state)
        logits.append(out.logits)
    return apart(torch.cat(logits, 1), whole)


@torch.enable_grad()
def _gradients(theirs: Any, ours: Any, ids: Tensor) -> float:
    asked = torch.randn(theirs.config.vocab_size, generator=torch.Generator().manual_seed(3))
    tables = theirs.get_input_embeddings(), ours.decoder.embedding
    for model in (theirs, ours):
        (model(input_ids=ids).logits @ asked).sum().backward()
    real = torch.arange(len(tables[0].weight)) != tables[0].padding_idx
    return apart(tables[1].weight.grad[real], tables[0].weight.grad[real])
