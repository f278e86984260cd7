"""Rows 10 and 11: what is remembered between steps, and what can be done with it."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import torch

from ...core.choice import Choices
from ...core.memory import Memory
from ...core.stack import Stack
from ...core.state import MEMORY, PAST, Growth, State
from ...errors import InputError
from ..companions import decoding, hooked, serving
from ..places import causal, causal_pairs, crossing, once, pair
from ..registered import row, unless_able
from ..stacks import in_steps, lengths, padded, pieces, run, stack, step, vectors
from ..subjects import Subject
from ..trial import Trial


@row(10, "in chunks of 1, 3, 17 and n - 1", kinds=("attention",), places=causal, excuse=unless_able("causal"))
@torch.no_grad()
def chunks(subject: Subject, trial: Trial) -> None:
    case, batch = subject.case, trial.size("batch", (2,))
    length = trial.size("length", lengths(case)[1:], least=2)
    model = stack([case, case], positions=serving(case))
    x = vectors(batch, length)
    whole = Choices()
    want = run(model, x, choices=whole)
    for size in (1, 3, 17, length - 1):
        made = Choices()
        got, state = in_steps(model, x, model.empty_state(batch), pieces(length, size), choices=made)
        layers = len(whole.chosen)
        trial.same_choices(
            (torch.cat(made.chosen[layer::layers], dim=1) for layer in range(layers)), whole.chosen,
            "what is chosen step by step, against all at once,",
        )  # fmt: skip
        trial.close(got, want, what=f"chunks of {size if size != length - 1 else 'n - 1'}: the result")
        trial.holds(state.seen.tolist() == [length] * batch, "the state counts other tokens than it has seen")
        trial.holds(state.columns == length, "the state counts other columns than it was fed")


@row(
    10,
    "in chunks, with each position",
    kinds=("attention", "position"),
    places=causal_pairs,
    excuse=lambda cls: unless_able("causal")(cls) if cls.kind == "attention" else "",
)
@torch.no_grad()
def chunks_with_positions(subject: Subject, trial: Trial) -> None:
    case, chosen = pair(subject)
    batch, length = trial.size("batch", (3,)), trial.size("length", lengths(case)[1:], least=11)
    model = stack([case], positions=[chosen])
    x = vectors(batch, length)
    got, _ = in_steps(model, x, model.empty_state(batch), [7, 1, 0, 1, length - 10, 1])
    trial.close(got, run(model, x))


@row(10, "a feedforward in chunks", kinds=("feedforward",), places=once)
@torch.no_grad()
def chunks_through_a_feedforward(subject: Subject, trial: Trial) -> None:
    model = stack([], feedforward=subject.case)
    batch, length = trial.size("batch", (3,)), trial.size("length", (19,), least=7)
    x = vectors(batch, length)
    got, _ = in_steps(model, x, model.empty_state(batch), [5, 1, length - 6])
    trial.close(got, run(model, x))


@row(10, "a feedforward behind padding", kinds=("feedforward",), places=once)
@torch.no_grad()
def padding_before_a_feedforward_goes_on(subject: Subject, trial: Trial) -> None:
    model = stack([], feedforward=subject.case)
    batch, length = trial.size("batch", (3,)), trial.size("length", (19,), least=3)
    counts = [length, length - 2, 1][:batch]
    x, more = vectors(batch, length), vectors(batch, 2)
    for side in ("left", "right", "inner"):
        wide, mask = padded(x, side, counts)
        _, state = step(model, wide, model.empty_state(batch), attention_mask=mask)
        got, _ = step(model, more, state)
        for b, count in enumerate(counts):
            alone = run(model, torch.cat([x[b, :count], more[b]]).unsqueeze(0))[0, count:]
            trial.close(got[b], alone, what=f"a row that goes on ({side})")


@row(10, "rows of different lengths go on", kinds=("attention",), places=causal, excuse=unless_able("causal"))
@torch.no_grad()
def rows_of_different_lengths(subject: Subject, trial: Trial) -> None:
    case, batch = subject.case, trial.size("batch", (4,))
    length = trial.size("length", (23, 41), least=2)
    counts = [length, max(length - 9, 0), 2, 0][:batch]
    model = stack([case, case], positions=serving(case))
    for side in ("left", "right", "inner"):
        x = vectors(batch, length)
        wide, mask = padded(x, side, counts)
        y, state = step(model, wide, model.empty_state(batch), attention_mask=mask)
        more = vectors(batch, 6)
        ragged = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]])[:batch]
        poisoned = more[:, :3].masked_fill(ragged.unsqueeze(2) == 0, float("nan"))
        y1, state = step(model, poisoned, state, attention_mask=ragged)
        y2, state = step(model, more[:, 3:], state)
        for b, count in enumerate(counts):
            new = more[b, :3][ragged[b].bool()]
            alone = run(model, torch.cat([x[b, :count], new, more[b, 3:]]).unsqueeze(0))[0]
            got = torch.cat([y[b][mask[b].bool()], y1[b][ragged[b].bool()], y2[b]])
            trial.close(got, alone, what=f"a row that goes on ({side})")
        seen = [count + int(ragged[b].sum()) + 3 for b, count in enumerate(counts)]
        trial.holds(state.seen.tolist() == seen, "the state counts other tokens than it has seen")


@row(10, "with a memory, primed once", kinds=("attention",), places=crossing, excuse=unless_able("cross"))
@torch.no_grad()
def chunks_with_a_memory(subject: Subject, trial: Trial) -> None:
    batch, length = trial.size("batch", (3,)), trial.size("length", (11, 23))
    columns = trial.size("memory", (13, 29))
    model = stack(decoding()[:2], cross=subject.case)
    x, memory = vectors(batch, length), vectors(batch, columns)
    mask = (torch.rand(batch, columns) < 0.6).long()
    mask[2:3] = 0
    for given in (None, mask):
        want = run(model, x, memory=Memory(memory, given))
        state = model.prime(model.empty_state(batch), Memory(memory, given))
        check_declared(trial, model, state, batch, columns)
        for size in (1, 3, length):
            got, after = in_steps(model, x, state, pieces(length, size))
            trial.close(got, want)
        order = torch.arange(batch).flip(0)[: max(batch - 1, 1)]
        y, _ = step(model, x[order], state.reorder(order))
        trial.close(y, want[order], what="the result of reordered rows")
        for name, tensor in state.tensors.items():
            if "cross" in name:
                trial.equal(after.tensors[name], tensor, "what was primed, after steps,")


def check_declared(trial: Trial, model: Stack, state: State, batch: int, memory: int = 0) -> None:
    """Check that a state's tensors have the declared names, sizes and dtypes, and so the declared bytes."""
    declared = model.declared()
    trial.holds(state.tensors.keys() == declared.keys(), "the state has other names than it declares")
    dtype = next(model.parameters()).dtype
    size = 0
    for name, rule in declared.items():
        tensor, short = state.tensors[name], name.rpartition(".")[2]
        trial.holds(rule.grows in get_args(Growth), f"the state's {short} grows as {rule.grows!r}, which is unknown")
        trial.holds(
            rule.dtype in ("model", "accumulate", "int64"), f"the state's {short} has an unknown dtype {rule.dtype!r}"
        )
        sizes = {"batch": batch, PAST: state.columns, MEMORY: memory}
        wanted = [sizes[d] if isinstance(d, str) else d for d in rule.dims]
        trial.holds(list(tensor.shape) == wanted, f"the state's {short} has not the declared size", tensor.shape)
        trial.holds(tensor.dtype == rule.torch_dtype(dtype), f"the state's {short} has not the declared dtype")
        trial.holds(rule.dims[0] == "batch", f"the state's {short} does not begin with the batch")
        trial.holds((PAST in rule.dims) == (rule.grows == "append"), f"the state's {short} appends along no past")
        trial.holds(MEMORY not in rule.dims or rule.grows == "static", f"the state's {short} is of a memory, and grows")
        size += tensor.numel() * tensor.element_size()
    trial.holds(state.nbytes == size, "the state has other bytes than it declares")


@row(11, "names, sizes, dtypes and bytes", kinds=("attention",), places=causal, excuse=unless_able("causal"))
@torch.no_grad()
def the_declared_state(subject: Subject, trial: Trial) -> None:
    batch = trial.size("batch", (3,))
    for dtype in (torch.float64, torch.bfloat16):
        model = stack([subject.case, subject.case]).to(dtype)
        state = model.empty_state(batch)
        for length in (0, 1, 7, 1, trial.size("length", (31,)), 0):
            _, state = step(model, vectors(batch, length).to(dtype), state)
            check_declared(trial, model, state, batch)


@row(11, "a state with room", kinds=("attention",), places=causal, excuse=unless_able("causal"))
@torch.no_grad()
def a_state_with_room(subject: Subject, trial: Trial) -> None:
    case, batch = subject.case, trial.size("batch", (3,))
    length = trial.size("length", lengths(case)[:2], least=4)
    model = stack([case, case], positions=serving(case))
    x, more = vectors(batch, length), vectors(batch, 6)
    room = length + 5 + 6 + 4
    for side in ("left", "right", "inner", "none", "none, with gradients"):
        growing, slots = model.empty_state(batch), model.empty_state(batch, room)
        sizes = [tensor.shape for tensor in slots.tensors.values()]
        with torch.set_grad_enabled(side.endswith("gradients")):
            for new, given in _fed(side, x, more):
                want, growing = step(model, new, growing, **given)
                got, slots = step(model, new, slots, **given)
                trial.close(got, want, what=f"a step with a state that has room (padding: {side})")
        trial.holds(slots.seen.tolist() == growing.seen.tolist(), "a state with room counts other tokens")
        trial.holds([t.shape for t in slots.tensors.values()] == sizes, "a state with room does not keep its size")
    wide = vectors(batch, 10)
    trial.raises(InputError, partial(step, model, wide, slots), "more tokens than there is room", ["room"])


def _fed(side: str, x: torch.Tensor, more: torch.Tensor) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Return x (B, T, C) and `more` (B, 6, C) in chunks, each with its mask where there is padding."""
    batch, length = x.shape[:2]
    if side.startswith("none"):
        return [(part, {}) for part in (x[:, :7], x[:, 7:], more[:, :3], more[:, 3:4], more[:, 4:])]
    wide, mask = padded(x, side, [length, length - 3, 0])
    ragged = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0]])[:batch]
    return [
        (wide[:, :7], {"attention_mask": mask[:, :7]}), (wide[:, 7:], {"attention_mask": mask[:, 7:]}),
        (more[:, :3], {"attention_mask": ragged}), (more[:, 3:4], {}), (more[:, 4:], {}),
    ]  # fmt: skip


@row(11, "reorder, fork and roll back", kinds=("attention",), places=causal, excuse=unless_able("causal"))
@torch.no_grad()
def reorder_fork_and_roll_back(subject: Subject, trial: Trial) -> None:
    case = subject.case
    length = trial.size("length", (23, 41), least=14)
    model = stack([case, case], positions=serving(case))
    x = vectors(4, length + 9)
    want = run(model, x)
    counts = [length, length - 1, length - 13, 4]
    wide, mask = padded(x[:, :length], "inner", counts)
    _, state = step(model, wide, model.empty_state(4), attention_mask=mask)
    order = torch.tensor([3, 0, 0, 2, 1])
    more = vectors(5, 5)
    y, _ = step(model, more, state.reorder(order))
    for i, b in enumerate(order.tolist()):
        alone = run(model, torch.cat([x[b, : counts[b]], more[i]]).unsqueeze(0))
        trial.close(y[i], alone[0, -5:], what="the result of reordered rows")

    _, state = step(model, x[:, :length], model.empty_state(4))
    kept = state.fork()
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    first, _ = step(model, x[:, length:], state)
    step(model, vectors(4, 30), state)
    for name, tensor in state.tensors.items():
        trial.equal(before[name], tensor, "the state that a step was given, after it,")
    for again in (state, kept):
        trial.close(step(model, x[:, length:], again)[0], first, what="the result of going back")
    trial.close(first, want[:, length:])
    for a, b in zip(kept.tensors.values(), state.tensors.values(), strict=True):
        trial.holds(not a.numel() or a.data_ptr() != b.data_ptr(), "a fork shares memory with what it copies")


@row(11, "crop goes back or is refused", kinds=("attention",), places=causal, excuse=unless_able("causal"))
@torch.no_grad()
def crop(subject: Subject, trial: Trial) -> None:
    case = subject.case
    model = stack([case, case], positions=serving(case) or hooked("add")[:1])
    grows = {rule.grows for name, rule in model.declared().items() if name != "seen"}
    first, x, more = vectors(3, 13), vectors(3, 29), vectors(3, 4)
    mask = (torch.rand(3, 13) < 0.7).long()
    situations: tuple[tuple[dict[str, Any], int], ...] = (({}, 0), ({"attention_mask": mask}, 13))
    for given, firm in situations:
        _, start = step(model, first, model.empty_state(3), **given)
        _, state = step(model, x, start)
        if not grows <= {"append", "static"}:
            trial.raises(InputError, partial(state.crop, 40), "a state that forgets is cropped", ["fork"])
            continue
        for length in (0, 5, trial.place(6, 28), 29):
            _, want = step(model, x[:, :length], start)
            cropped = state.crop(13 + length)
            check_declared(trial, model, cropped, 3)
            trial.holds(cropped.seen.tolist() == want.seen.tolist(), "a cropped state counts other tokens")
            trial.close(step(model, more, cropped)[0], step(model, more, want)[0], what="the result after a crop")
        for wrong in (firm - 1, 43):
            trial.raises(InputError, partial(state.crop, wrong), "a state is cropped too far", ["crop"])


@row(11, "a memory's state is as declared", kinds=("attention",), places=lambda cases: crossing(cases[:1]),
     excuse=unless_able("cross"))  # fmt: skip
@torch.no_grad()
def a_memory_s_state(subject: Subject, trial: Trial) -> None:
    batch, columns = trial.size("batch", (3,)), trial.size("memory", (13, 29))
    model = stack(decoding()[:1], cross=subject.case).to(torch.bfloat16)
    state = model.prime(model.empty_state(batch), Memory(vectors(batch, columns).to(torch.bfloat16)))
    check_declared(trial, model, state, batch, columns)
