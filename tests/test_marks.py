"""Raw inputs that a layer or a position reads of each token: packed, sliced and remembered with the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from transom.conformance.stacks import Vectors, by_reference, shaken
from transom.core.block import Block
from transom.core.component import Site
from transom.core.inputs import Input
from transom.core.position import Position
from transom.core.stack import Stack
from transom.core.tokens import Tokens
from transom.registry.manager import default

LENGTH = 47


class KindPosition(Position):
    """Add to the scores of tokens of different kinds."""

    hooks: ClassVar[frozenset[str]] = frozenset({"score"})
    relative: ClassVar[bool] = True

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        self.weight = nn.Parameter(torch.empty(site.n_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 2.0)

    def reads(self) -> Mapping[str, Input]:
        return {"kind_ids": Input(("batch", "sequence"), "int64", high=3, optional=True)}

    def score(self, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
        kinds = [t.marks.get("kind_ids", torch.zeros_like(t.pos)) for t in (q_tokens, k_tokens)]
        apart = (kinds[0].unsqueeze(2) != kinds[1].unsqueeze(1)).to(q.dtype)
        return apart.unsqueeze(1) * self.weight[:, None, None]


def stack(kind: str, causal: bool = True, **options: Any) -> Stack:
    site = Site(d_model=24, max_seq_len=64, causal=causal, n_heads=3, head_dim=8)
    cls = default().get("attention", kind)
    attention = cls.build(cls.Config(n_heads=3, **options), site)
    found: Stack = shaken(
        Stack(site, Vectors(site), [KindPosition(None, site)], [Block({"attention": attention}, {})], None)
    )
    return found


def drawn() -> tuple[Tensor, Tensor]:
    return torch.randn(3, LENGTH, 24, dtype=torch.float64), torch.randint(3, (3, LENGTH))


BLOCKS: Mapping[str, Mapping[str, int]] = {
    "full": {}, "local": {"window": 7}, "sparse": {"block": 4, "n_window": 2, "n_random": 1},
    "big_bird": {"block": 3, "n_random": 1, "random": "first"}, "longformer": {"window": 6},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "causal"),
    [
        ("full", True),
        ("full", False),
        ("sparse", True),
        ("sparse", False),
        ("local", False),
        ("big_bird", False),
        ("longformer", False),
    ],
)
def test_what_a_call_leaves_out_means_zeros_and_blocks_see_what_the_definition_sees(kind: str, causal: bool) -> None:
    model, (x, kinds) = stack(kind, causal, **BLOCKS[kind]), drawn()
    plain, marked = model({"x": x})[0], model({"x": x, "kind_ids": kinds})[0]
    torch.testing.assert_close(plain, model({"x": x, "kind_ids": torch.zeros_like(kinds)})[0])
    assert not torch.allclose(plain, marked)
    torch.testing.assert_close(marked, by_reference(model)({"x": x, "kind_ids": kinds})[0])


@pytest.mark.parametrize("kind", BLOCKS)
def test_padding_moves_them_with_their_tokens(kind: str) -> None:
    model, (x, kinds) = stack(kind, False, **BLOCKS[kind]), drawn()
    mask = torch.ones(3, LENGTH, dtype=torch.int64)
    mask[0, :9], mask[1, 5:8], mask[2, 30:] = 0, 0, 0
    found = model({"x": x, "kind_ids": kinds}, attention_mask=mask)[0]
    for row in range(3):
        real = mask[row].bool()
        alone = model({"x": x[row : row + 1, real], "kind_ids": kinds[row : row + 1, real]})[0]
        torch.testing.assert_close(found[row, real], alone[0])


@pytest.mark.parametrize("kind", ["full", "sparse"])
def test_a_state_keeps_those_of_past_tokens(kind: str) -> None:
    model, (x, kinds) = stack(kind, **BLOCKS[kind]), drawn()
    state, found = model.empty_state(3), []
    for part, ids in zip(x.split(11, dim=1), kinds.split(11, dim=1), strict=True):
        y, state = model({"x": part, "kind_ids": ids}, state=state)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, dim=1), model({"x": x, "kind_ids": kinds})[0])


def test_a_ring_can_t_keep_them() -> None:
    with pytest.raises(ValueError, match="does not keep their kind_ids"):
        stack("local", window=7)
