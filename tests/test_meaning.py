"""What options mean, in plain numbers: a fast path and its reference could agree on the wrong thing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from transom.core.component import Site
from transom.core.tokens import Tokens
from transom.registry.manager import default


def seen(name: str, causal: bool, length: int, **options: int) -> list[list[int]]:
    """Return for each token the positions that it sees, with the attention of this name."""
    cls = default().get("attention", name)
    site = Site(d_model=8, max_seq_len=length, causal=causal)
    layer = cls.build(cls.Config(**options), site)
    tokens = Tokens(torch.arange(length).unsqueeze(0))
    return [row.nonzero().flatten().tolist() for row in layer.visible(tokens, tokens)[0]]


def test_a_window_counts_the_token_itself() -> None:
    assert seen("local", True, 6, n_heads=2, window=3)[5] == [3, 4, 5]
    assert seen("local", True, 6, n_heads=2, window=1)[4] == [4]
    assert seen("local", False, 7, n_heads=2, window=3)[3] == [1, 2, 3, 4, 5]


def test_a_kernel_counts_the_token_itself() -> None:
    assert seen("conv", True, 6, kernel=3)[5] == [3, 4, 5]
    assert seen("conv", False, 6, kernel=3)[3] == [2, 3, 4]


def test_blocks_are_first_near_and_strided() -> None:
    options = {"n_heads": 2, "block": 2, "n_global": 1, "n_window": 2, "n_random": 0}
    assert seen("sparse", True, 12, **options)[11] == [0, 1, 8, 9, 10, 11]
    assert seen("sparse", True, 12, **options)[8] == [0, 1, 6, 7, 8]
    assert seen("sparse", True, 12, **options, stride=3)[10] == [0, 1, 4, 5, 8, 9, 10]
    assert seen("sparse", False, 12, **options)[0] == list(range(12))


def test_random_blocks_are_as_many_as_asked_and_the_same_at_every_length() -> None:
    options = {"n_heads": 2, "block": 1, "n_global": 0, "n_window": 1, "n_random": 3}
    long, short = seen("sparse", True, 40, **options), seen("sparse", True, 23, **options)
    assert [len(row) for row in long] == [min(i, 3) + 1 for i in range(40)]
    assert short == long[:23]


@pytest.mark.parametrize(("layout", "pairs"), [("half", [(0, 2), (1, 3)]), ("interleaved", [(0, 1), (2, 3)])])
def test_rope_turns_each_pair_by_its_own_angle(layout: str, pairs: list[tuple[int, int]]) -> None:
    cls = default().get("position", "rope")
    rope = cls.build(cls.Config(theta=100.0, layout=layout), Site(d_model=4, max_seq_len=9, n_heads=1, head_dim=4))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    turned: Tensor = rope.rotate(x.view(1, 1, 1, 4), Tokens(torch.tensor([[7]]))).flatten()
    for speed, (a, b) in zip((1.0, 100.0**-0.5), pairs, strict=True):
        cos, sin = math.cos(7 * speed), math.sin(7 * speed)
        assert turned[a].item() == pytest.approx(x[a] * cos - x[b] * sin)
        assert turned[b].item() == pytest.approx(x[b] * cos + x[a] * sin)


def test_alibi_lowers_by_distance_times_a_slope_of_the_head() -> None:
    cls = default().get("position", "alibi")
    alibi = cls.build(cls.Config(), Site(d_model=8, max_seq_len=9, n_heads=2, head_dim=4))
    at = Tokens(torch.tensor([[5]])), Tokens(torch.tensor([[2, 5]]))
    scores = alibi.score(*at, torch.zeros(1, 1, 2, 4), torch.zeros(1, 2, 2, 4))
    torch.testing.assert_close(scores[0, :, 0], torch.tensor([[-3 / 16, 0.0], [-3 / 256, 0.0]]))


def test_learned_and_sinusoidal_add_what_stands_at_the_position() -> None:
    site, x, tokens = Site(d_model=4, max_seq_len=9), torch.zeros(1, 1, 4), Tokens(torch.tensor([[3]]))
    learned, waves = (default().get("position", name) for name in ("learned", "sinusoidal"))
    table = learned.build(learned.Config(), site)
    torch.testing.assert_close(table.add(x, tokens)[0, 0], table.weight[3])
    added = waves.build(waves.Config(theta=100.0), site).add(x, tokens)[0, 0]
    wanted = torch.tensor([math.sin(3), math.cos(3), math.sin(0.3), math.cos(0.3)])
    torch.testing.assert_close(added, wanted)
