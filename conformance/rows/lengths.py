"""Row 13: lengths 0 and 1, about every number among the options, the most, and one more; and no rows at all."""

from __future__ import annotations

import dataclasses

import torch

from ...errors import InputError
from ..cases import D_MODEL, MAX_SEQ_LEN, Case
from ..companions import is_mechanism, serving
from ..places import able, causal, directed, hooks
from ..registered import row, unless_able
from ..stacks import by_reference, run, stack, step, vectors
from ..subjects import Subject
from ..trial import Trial


def edges(case: Case) -> list[int]:
    """Return lengths about every number among a case's options, its multiples, and usual sizes of blocks."""
    numbers = {value for f in dataclasses.fields(case.config) if type(value := getattr(case.config, f.name)) is int}
    marks = {n * times for n in numbers for times in (1, 2)} | {MAX_SEQ_LEN - 1}
    marks |= {64, 128} if is_mechanism(case) else set()
    near = {mark + offset for mark in marks for offset in (-1, 0, 1)}
    return sorted(n for n in near | {0, 1} if 0 <= n <= MAX_SEQ_LEN)


@row(13, "at once", kinds=("attention",), places=directed)
@torch.no_grad()
def every_length(subject: Subject, trial: Trial) -> None:
    case = subject.case
    model, slow = (stack([case, case], positions=serving(case), causal=subject.causal) for _ in range(2))
    by_reference(slow)
    x = vectors(2, MAX_SEQ_LEN)
    names = [(), ("attention_mask",), *([("document_ids",)] if able(case, "documents") else [])]  # with no rows
    for length in edges(case):
        trial.close(run(model, x[:, :length]), run(slow, x[:, :length]), what=f"the result of {length} tokens")
        empty = torch.zeros(2, length, dtype=torch.int64)
        shape = run(model, x[:0, :length], **dict.fromkeys(trial.choice(names), empty[:0])).shape
        trial.holds(shape == (0, length, D_MODEL), "no rows give another shape", shape)
        trial.holds(not run(model, x[:, :length], attention_mask=empty).any(), "nothing but padding does not give 0")
    too_long = vectors(2, MAX_SEQ_LEN + 1)
    trial.raises(InputError, lambda: run(model, too_long), "a row is longer than max_seq_len", [str(MAX_SEQ_LEN)])
    mask = torch.ones(2, MAX_SEQ_LEN + 1, dtype=torch.int64)
    mask[:, 3] = 0  # as many columns, one of them padding
    trial.finite(run(model, too_long, attention_mask=mask))


@row(13, "with a state", kinds=("attention",), places=causal, excuse=unless_able("causal"))
@torch.no_grad()
def every_length_with_a_state(subject: Subject, trial: Trial) -> None:
    case = subject.case
    model = stack([case], positions=serving(case))
    x = vectors(2, MAX_SEQ_LEN)
    want = run(model, x)
    for length in edges(case):
        y, state = step(model, x[:, :length], model.empty_state(2))
        trial.close(y, want[:, :length], what=f"the result of {length} tokens")
        rest, full = step(model, x[:, length:], state)
        trial.close(rest, want[:, length:], what=f"the result after {length} tokens")
        none, same = step(model, x[:, :0], state)
        trial.holds(none.shape[1] == 0, "no tokens give some", none.shape)
        for name, tensor in state.tensors.items():
            trial.equal(same.tensors[name], tensor, "the state after a step of no tokens")
        mask = {"attention_mask": torch.ones(0, length, dtype=torch.int64)}
        y, nobody = step(model, x[:0, :length], model.empty_state(0), **trial.choice(({}, mask)))
        trial.holds(y.shape == (0, length, D_MODEL), "no rows give another shape", y.shape)
        trial.holds(nobody.seen.shape == (0,), "the state of no rows has some")
    trial.raises(
        InputError, lambda: step(model, x[:, :1], full), "a state goes on beyond max_seq_len", [str(MAX_SEQ_LEN)]
    )
    trial.raises(InputError, lambda: step(model, x[:1], state), "a state of two rows takes one", ["rows"])


@row(13, "a position at the last place", kinds=("position",), places=hooks)
@torch.no_grad()
def the_last_place(subject: Subject, trial: Trial) -> None:
    module, inputs = subject.build(), subject.inputs(trial.size("batch", (2,)), MAX_SEQ_LEN)
    trial.finite(subject.call(module, *inputs), what=f"what it does with {MAX_SEQ_LEN} tokens")
