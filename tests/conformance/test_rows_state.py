"""Rows 10, 11 and 13: what is remembered, step by step, at every length."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from transom.core.stack import Stack
from transom.core.state import MEMORY, PAST, State
from transom.errors import InputError

from . import harness
from .harness import Case

CAUSAL = harness.able("causal")
CROSS = harness.able("cross")
PAIRS = [(case, chosen) for case, chosen, causal in harness.pairs() if causal]


def _in_steps(model: Stack, x: Tensor, state: State, sizes: Sequence[int]) -> tuple[Tensor, State]:
    outputs = []
    for part in x.split(list(sizes), dim=1):
        y, state = harness.step(model, part, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def _chunks(length: int, size: int) -> list[int]:
    return [size] * (length // size) + [length % size] * (length % size > 0)


@torch.no_grad()
@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_row_10_steps_equal_all_at_once(case: Case, rng: random.Random) -> None:
    length = rng.choice(harness.lengths(case)[1:])
    model = harness.stack([case, case], positions=harness.serving(case))
    x = harness.vectors(2, length)
    want = harness.run(model, x)
    for size in (1, 3, 17, length - 1):
        got, state = _in_steps(model, x, model.empty_state(2), _chunks(length, size))
        harness.close(got, want, what=f"chunks of {size}")
        assert state.seen.tolist() == [length, length]
        assert state.columns == length


@torch.no_grad()
@pytest.mark.parametrize(("case", "chosen"), PAIRS, ids=str)
def test_row_10_steps_equal_all_at_once_with_each_position(case: Case, chosen: Case, rng: random.Random) -> None:
    length = rng.choice(harness.lengths(case)[1:])
    model = harness.stack([case], positions=[chosen])
    x = harness.vectors(3, length)
    got, _ = _in_steps(model, x, model.empty_state(3), [7, 1, 0, 1, length - 10, 1])
    harness.close(got, harness.run(model, x))


@torch.no_grad()
@pytest.mark.parametrize("case", harness.cases("feedforward"), ids=str)
def test_row_10_steps_through_a_feedforward(case: Case) -> None:
    model = harness.stack([], feedforward=case)
    x = harness.vectors(3, 19)
    got, _ = _in_steps(model, x, model.empty_state(3), [5, 1, 13])
    harness.close(got, harness.run(model, x))


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right", "inner"])
@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_row_10_rows_of_different_lengths_go_on(case: Case, side: str, rng: random.Random) -> None:
    length = rng.choice((23, 41))
    lengths = [length, length - 9, 2, 0]
    model = harness.stack([case, case], positions=harness.serving(case))
    x = harness.vectors(4, length)
    wide, mask = harness.padded(x, side, lengths)
    y, state = harness.step(model, wide, model.empty_state(4), attention_mask=mask)
    more = harness.vectors(4, 6)
    ragged = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]])
    y1, state = harness.step(model, more[:, :3].masked_fill(ragged.unsqueeze(2) == 0, float("nan")), state,
                             attention_mask=ragged)  # fmt: skip
    y2, state = harness.step(model, more[:, 3:], state)
    for row, count in enumerate(lengths):
        new = more[row, :3][ragged[row].bool()]
        alone = harness.run(model, torch.cat([x[row, :count], new, more[row, 3:]]).unsqueeze(0))[0]
        harness.close(torch.cat([y[row][mask[row].bool()], y1[row][ragged[row].bool()], y2[row]]), alone)
    assert state.seen.tolist() == [count + int(ragged[row].sum()) + 3 for row, count in enumerate(lengths)]


@torch.no_grad()
@pytest.mark.parametrize("case", CROSS, ids=str)
def test_row_10_steps_with_a_memory(case: Case, rng: random.Random) -> None:
    length, memory_length = rng.choice((11, 23)), rng.choice((13, 29))
    model = harness.stack(harness.bases("attention")[:2], cross=case)
    x, memory = harness.vectors(3, length), harness.vectors(3, memory_length)
    mask = (torch.rand(3, memory_length) < 0.6).long()
    mask[2] = 0
    for given in (None, mask):
        want = harness.run(model, x, memory=memory, memory_mask=given)
        state = model.prime(model.empty_state(3), memory, given)
        _check_declared(model, state, 3, memory_length)
        for size in (1, 3, length):
            got, after = _in_steps(model, x, state, _chunks(length, size))
            harness.close(got, want)
        order = torch.tensor([2, 0])
        y, _ = harness.step(model, x[order], state.reorder(order))
        harness.close(y, want[order])
        assert all(torch.equal(after.tensors[n], t) for n, t in state.tensors.items() if "cross" in n)


def _check_declared(model: Stack, state: State, batch: int, memory: int = 0) -> None:
    """Assert that a state's tensors have the declared names, sizes and dtypes, and so the declared bytes."""
    declared = model.declared()
    assert state.tensors.keys() == declared.keys()
    dtype = next(model.parameters()).dtype
    size = 0
    for name, rule in declared.items():
        tensor = state.tensors[name]
        sizes = {"batch": batch, PAST: state.columns, MEMORY: memory}
        assert list(tensor.shape) == [sizes[d] if isinstance(d, str) else d for d in rule.dims], name
        assert tensor.dtype == rule.torch_dtype(dtype), name
        assert rule.dims[0] == "batch"
        assert (PAST in rule.dims) == (rule.grows == "append")
        assert (MEMORY not in rule.dims) or rule.grows == "static"
        size += tensor.numel() * tensor.element_size()
    assert state.nbytes == size


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_row_11_a_state_is_what_was_declared(case: Case, dtype: torch.dtype) -> None:
    model = harness.stack([case, case]).to(dtype)
    state = model.empty_state(3)
    for length in (0, 1, 7, 1, 31, 0):
        _, state = harness.step(model, harness.vectors(3, length).to(dtype), state)
        _check_declared(model, state, 3)


@torch.no_grad()
@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_row_11_reorder_fork_and_roll_back(case: Case, rng: random.Random) -> None:
    length = rng.choice((23, 41))
    model = harness.stack([case, case], positions=harness.serving(case))
    x = harness.vectors(4, length + 9)
    want = harness.run(model, x)
    lengths = [length, length - 1, length - 13, 4]
    wide, mask = harness.padded(x[:, :length], "inner", lengths)
    _, state = harness.step(model, wide, model.empty_state(4), attention_mask=mask)
    order = torch.tensor([3, 0, 0, 2, 1])
    more = harness.vectors(5, 5)
    y, _ = harness.step(model, more, state.reorder(order))
    for i, row in enumerate(order.tolist()):
        alone = harness.run(model, torch.cat([x[row, : lengths[row]], more[i]]).unsqueeze(0))
        harness.close(y[i], alone[0, -5:])

    _, state = harness.step(model, x[:, :length], model.empty_state(4))
    kept = state.fork()
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    first, _ = harness.step(model, x[:, length:], state)
    harness.step(model, harness.vectors(4, 30), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors.items()), "a step wrote to its input"
    for again in (state, kept):
        harness.close(harness.step(model, x[:, length:], again)[0], first)
    harness.close(first, want[:, length:])
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(kept.tensors.values(), state.tensors.values(), strict=True)
               if a.numel())  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_row_11_crop_goes_back_or_is_refused(case: Case, rng: random.Random) -> None:
    model = harness.stack([case, case], positions=harness.serving(case) or harness.hooked("add")[:1])
    grows = {rule.grows for name, rule in model.declared().items() if name != "seen"}
    first, x, more = harness.vectors(3, 13), harness.vectors(3, 29), harness.vectors(3, 4)
    mask = (torch.rand(3, 13) < 0.7).long()
    for given, firm in (({}, 0), ({"attention_mask": mask}, 13)):
        _, start = harness.step(model, first, model.empty_state(3), **given)
        _, state = harness.step(model, x, start)
        if not grows <= {"append", "static"}:
            with pytest.raises(InputError, match="fork"):
                state.crop(40)
            continue
        for length in (0, 5, rng.randrange(6, 28), 29):
            _, want = harness.step(model, x[:, :length], start)
            cropped = state.crop(13 + length)
            _check_declared(model, cropped, 3)
            assert cropped.seen.tolist() == want.seen.tolist()
            harness.close(harness.step(model, more, cropped)[0], harness.step(model, more, want)[0])
        for wrong in (firm - 1, 43):
            with pytest.raises(InputError, match="crop"):
                state.crop(wrong)


def _edges(case: Case) -> list[int]:
    """Return lengths about every number among a case's options, its multiples, and usual sizes of blocks."""
    numbers = {value for f in dataclasses.fields(case.config) if type(value := getattr(case.config, f.name)) is int}
    marks = {n * times for n in numbers for times in (1, 2)} | {harness.MAX_SEQ_LEN - 1}
    marks |= {64, 128} if harness.is_mechanism(case) else set()
    near = {mark + offset for mark in marks for offset in (-1, 0, 1)}
    return sorted(n for n in near | {0, 1} if 0 <= n <= harness.MAX_SEQ_LEN)


@torch.no_grad()
@pytest.mark.parametrize(("case", "causal"), harness.directed(CAUSAL), ids=str)
def test_row_13_every_length(case: Case, causal: bool) -> None:
    model, slow = (harness.stack([case, case], positions=harness.serving(case), causal=causal) for _ in range(2))
    harness.by_reference(slow)
    x = harness.vectors(2, harness.MAX_SEQ_LEN)
    for length in _edges(case):
        harness.close(harness.run(model, x[:, :length]), harness.run(slow, x[:, :length]), what=f"length {length}")
        empty = torch.zeros(2, length, dtype=torch.int64)
        for none in ({}, {"attention_mask": empty[:0]}, {"document_ids": empty[:0]}):
            assert harness.run(model, x[:0, :length], **none).shape == (0, length, harness.D_MODEL)
        assert not harness.run(model, x[:, :length], attention_mask=empty).any()
    too_long = harness.vectors(2, harness.MAX_SEQ_LEN + 1)
    with pytest.raises(InputError, match=str(harness.MAX_SEQ_LEN)):
        harness.run(model, too_long)
    mask = torch.ones(2, harness.MAX_SEQ_LEN + 1, dtype=torch.int64)
    mask[:, 3] = 0  # as many columns, one of them padding
    assert harness.run(model, too_long, attention_mask=mask).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_row_13_every_length_with_a_state(case: Case) -> None:
    model = harness.stack([case], positions=harness.serving(case))
    x = harness.vectors(2, harness.MAX_SEQ_LEN)
    want = harness.run(model, x)
    for length in _edges(case):
        y, state = harness.step(model, x[:, :length], model.empty_state(2))
        harness.close(y, want[:, :length], what=f"length {length}")
        rest, full = harness.step(model, x[:, length:], state)
        harness.close(rest, want[:, length:], what=f"after {length}")
        none, same = harness.step(model, x[:, :0], state)
        assert none.shape[1] == 0
        assert all(torch.equal(same.tensors[name], tensor) for name, tensor in state.tensors.items())
        mask = torch.ones(0, length, dtype=torch.int64)
        for empty in ({}, {"attention_mask": mask}):
            y, nobody = harness.step(model, x[:0, :length], model.empty_state(0), **empty)
            assert y.shape == (0, length, harness.D_MODEL)
            assert nobody.seen.shape == (0,)
    with pytest.raises(InputError, match=str(harness.MAX_SEQ_LEN)):
        harness.step(model, x[:, :1], full)
    with pytest.raises(InputError, match="rows"):
        harness.step(model, x[:1], state)
