"""Moves between published tensors and ours: both ways give back every bit, whatever the shape and the dtype."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from transom.core.moves import Concat, Heads, Interleave, Move, Order, Reshape, Rows, Stack, Take, Transpose, conv1d

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
Shape = tuple[int, ...]


def drawn(shape: Shape, dtype: torch.dtype) -> Tensor:
    """Return random bits as a tensor: not only numbers, but every NaN, infinity and -0.0 that the dtype has."""
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    least, most = torch.iinfo(width).min, torch.iinfo(width).max
    return torch.randint(least, most, shape, dtype=width).view(dtype)


def bits(tensor: Tensor) -> tuple[Shape, torch.dtype, bytes]:
    """Return all that tells a tensor from another."""
    return tuple(tensor.shape), tensor.dtype, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


small = st.integers(1, 4)
rest = st.lists(st.integers(1, 3), max_size=2).map(tuple)
names = st.integers(0, 10**9).map(lambda number: Take(f"t{number}"))


@st.composite
def heads(draw: st.DrawFn) -> tuple[Move, Shape]:
    groups, sizes, tail = draw(small), tuple(draw(st.lists(small, min_size=1, max_size=3))), draw(rest)
    return Heads(draw(names), groups, sizes), (groups * sum(sizes), *tail)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Move, Shape]:
    count, width, still = draw(small), 2 * draw(st.integers(0, 3)), draw(st.integers(1, 3))
    return Interleave(draw(names), count, width), (count * (width + still), *draw(rest))


@st.composite
def ordered(draw: st.DrawFn) -> tuple[Move, Shape]:
    sizes = tuple(draw(st.lists(small, min_size=1, max_size=4)))
    return Order(draw(names), sizes, tuple(draw(st.permutations(range(len(sizes)))))), (sum(sizes), *draw(rest))


@st.composite
def reshaped(draw: st.DrawFn) -> tuple[Move, Shape]:
    a, b, c = draw(small), draw(small), draw(small)
    return Reshape(draw(names), (a * b, c), (a, b, c)), (a, b, c)


@st.composite
def joined(draw: st.DrawFn) -> tuple[Move, Shape]:
    sizes, tail = tuple(draw(st.lists(small, min_size=1, max_size=3))), draw(rest)
    dim = draw(st.integers(0, len(tail)))
    parts = tuple(Take(f"part{number}") for number in range(len(sizes)))
    return Concat(parts, sizes, dim), (*tail[:dim], sum(sizes), *tail[dim:])


@st.composite
def nested(draw: st.DrawFn) -> tuple[Move, Shape]:
    """Stack experts, each made of a transposed map and a fused one."""
    experts, wide, deep, groups = draw(small), draw(small), draw(small), draw(small)

    def expert(number: int) -> Move:
        fused = Heads(Take(f"{number}.fused"), groups, (1, 2))
        return Concat((Transpose(Take(f"{number}.turned")), fused), (wide, 3 * groups))

    return Stack(tuple(map(expert, range(experts)))), (experts, wide + 3 * groups, deep)


turned = st.tuples(names, small, small, rest).map(lambda d: (Transpose(d[0]), (*d[3], d[1], d[2])))
rows = st.tuples(names, small, small, small, rest).map(
    lambda d: (Rows(d[0], d[1], d[2], d[1] + d[2] + d[3]), (d[2], *d[4]))
)
taken = st.tuples(names, rest)
EVERY = [taken, turned, heads(), pairs(), reshaped(), joined(), nested(), rows]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=st.one_of(EVERY))
def test_what_is_saved_loads_again_and_back(dtype: torch.dtype, case: tuple[Move, Shape]) -> None:
    move, shape = case
    ours = drawn(shape, dtype)
    before = bits(ours)
    theirs = {name: tensor.clone() for name, tensor in move.save(ours).items()}
    assert sorted(theirs) == sorted(move.names())
    assert bits(ours) == before
    loaded = move.load(theirs.__getitem__)
    assert bits(loaded) == before
    again = move.save(loaded)
    assert {name: bits(tensor) for name, tensor in again.items()} == {n: bits(t) for n, t in theirs.items()}


@given(case=st.one_of(EVERY))
def test_shapes_are_known_without_numbers(case: tuple[Move, Shape]) -> None:
    move, shape = case
    theirs = move.save(torch.empty(shape, device="meta"))
    assert {name: tensor.shape for name, tensor in theirs.items()} == {
        name: tensor.shape for name, tensor in move.save(torch.zeros(shape)).items()
    }
    assert move.load(theirs.__getitem__).shape == shape


def test_one_tensor_is_held_at_a_time() -> None:
    def expert(number: int) -> Move:
        return Concat((Take(f"a{number}"), Transpose(Take(f"b{number}"))), (2, 3))

    live: list[weakref.ref[Tensor]] = []

    def get(name: str) -> Tensor:
        assert not any(tensor() is not None for tensor in live), name
        made = torch.zeros((2, 5) if name[0] == "a" else (5, 3))
        live.append(weakref.ref(made))
        return made

    assert Stack(tuple(map(expert, range(3)))).load(get).shape == (3, 5, 5)
    assert len(live) == 6


def test_fused_heads_come_apart_as_published() -> None:
    """Per head (q, k, v), per key group [q..., k, v], and per head [q | gate]."""
    tags = {"q": 1.0, "k": 2.0, "v": 3.0}

    def fused(order: str) -> Tensor:
        return torch.tensor([10.0 * head + tags[part] for head, part in enumerate(order) for _ in range(2)])

    per_head = Heads(Take("x"), 2, (2, 2, 2)).load(lambda _: fused("qkvqkv"))
    assert per_head.tolist() == [1, 1, 31, 31, 12, 12, 42, 42, 23, 23, 53, 53]
    per_group = Heads(Take("x"), 2, (4, 2, 2)).load(lambda _: fused("qqkvqqkv"))
    assert per_group.tolist() == [1, 1, 11, 11, 41, 41, 51, 51, 22, 22, 62, 62, 33, 33, 73, 73]
    gated = Heads(Take("x"), 2, (1, 1)).load(lambda _: torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert gated.tolist() == [[1], [3], [2], [4]]


def test_pairs_become_halves() -> None:
    theirs = torch.tensor([0, 1, 2, 3, 9, 10, 11, 12, 13, 19])
    assert Interleave(Take("x"), 2, 4).load(lambda _: theirs).tolist() == [0, 2, 1, 3, 9, 10, 12, 11, 13, 19]


def test_rows_are_cut_out_and_filled_in() -> None:
    move = Rows(Take("x"), 1, 2, 4, fill=-1.0)
    assert move.load(lambda _: torch.arange(4.0)).tolist() == [1, 2]
    assert move.save(torch.tensor([5.0, 6.0]))["x"].tolist() == [-1, 5, 6, -1]


def test_a_layer_as_gpt2_has_it_is_transposed_but_for_its_bias() -> None:
    assert conv1d("c_attn.weight") == Transpose(Take("c_attn.weight"))
    assert conv1d("c_attn.bias") == Take("c_attn.bias")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: Transpose(Take("x")).save(torch.zeros(3)), r"shape \(3,\) has no two dimensions"),
        (lambda: Reshape(Take("x"), (4,), (2, 2)).load(lambda _: torch.zeros(5)), r"\(5,\) should be of shape \(4,\)"),
        (lambda: Heads(Take("x"), 2, (1, 2)).load(lambda _: torch.zeros(7, 2)), r"\(7, 2\) should be of shape \(6, 2"),
        (lambda: Interleave(Take("x"), 2, 4).load(lambda _: torch.zeros(6)), "not of 2 heads whose first 4 rows"),
        (lambda: Rows(Take("x"), 1, 2, 4).load(lambda _: torch.zeros(5)), r"\(5,\) should be of shape \(4,\)"),
        (lambda: Concat((Take("x"),), (1, 2)), "1 parts can't have 2 sizes"),
        (lambda: Concat((Take("x"), Take("y")), (1, 2)).save(torch.zeros(4)), r"\(4,\) is not 1 \+ 2 = 3 along"),
        (lambda: Stack((Take("x"), Take("y"))).save(torch.zeros(3)), r"\(3,\) should be of shape \(2,\)"),
        # Nothing is stretched to fit, and nothing rounded.
        (lambda: Stack((Take("x"), Take("y"))).load({"x": torch.zeros(3), "y": torch.zeros(1)}.__getitem__), r"\(1,\)"),
        (
            lambda: Stack((Take("x"), Take("y"))).load({"x": torch.zeros(3), "y": torch.zeros(3).half()}.__getitem__),
            "are float32 and float16",
        ),
    ],
)
def test_what_does_not_fit_is_refused(act: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        act()
