"""What is handed to CUDA's kernels, against stand-ins that compute by the kernels' definitions on any device."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transom.core import fla, flash, flex
from transom.core.component import Site
from transom.core.context import Context
from transom.core.tokens import Tokens
from transom.plugins.attention.gated_delta import GatedDeltaAttention
from transom.plugins.attention.linear import LinearAttention
from transom.plugins.attention.local import LocalAttention
from transom.plugins.attention.sparse import SparseAttention
from transom.plugins.attention.state_space import StateSpaceAttention

Draw = Callable[..., Tensor]


@pytest.fixture
def draw() -> Draw:
    """Return a drawer of tensors that ask for gradients."""
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def context(length: int) -> Context:
    """Return plain tokens that see no later ones."""
    return Context(Tokens(torch.arange(length).unsqueeze(0)), causal=True)


def everywhere(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a module of kernels taken whatever the device and the dtype."""
    monkeypatch.setattr(module, "takes", lambda x, about: True)


def agrees(one: Tensor, other: Tensor, inputs: list[Tensor]) -> None:
    """Compare values, and gradients of all inputs."""
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    upstream = torch.randn_like(one)
    mine, theirs = (torch.autograd.grad(y, inputs, upstream, retain_graph=True) for y in (one, other))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_is_flash_attentions_window(causal: bool, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention's window counts the tokens on each side besides the token itself, and rows by their bounds."""

    def stand_in(
        q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, q_most: int, k_most: int, *,
        scale: float, window_size: tuple[int, int], enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        assert q_bounds.dtype == torch.int32
        rows = []
        for first, end in itertools.pairwise(q_bounds):
            place = torch.arange(int(end - first))
            distance = place.unsqueeze(1) - place
            seen = (distance <= window_size[0]) & (-distance <= window_size[1])
            one, two, three = (t[first:end].transpose(0, 1) for t in (q, k, v))
            y = F.scaled_dot_product_attention(one, two, three, attn_mask=seen, scale=scale, enable_gqa=True)
            rows.append(y.transpose(0, 1))
        return torch.cat(rows)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    everywhere(flash, monkeypatch)
    config = LocalAttention.Config(n_heads=6, n_kv_heads=2, head_dim=8, window=5)
    local = LocalAttention(config, Site(d_model=48, max_seq_len=64, causal=causal))
    q, k, v = draw(3, 29, 6, 8), draw(3, 29, 2, 8), draw(3, 29, 2, 8)
    assert local.on_cuda() == "FlashAttention with a window"
    agrees(local(q, k, v, context(29))[0], local.reference(q, k, v, context(29))[0], [q, k, v])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_blocks_are_flex_attentions_blocks(
    causal: bool, block: int, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flex attention sees the chosen blocks alone, whether by its rule or by the lists that its kernel walks."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flex, "_made", [flex_attention])
    everywhere(flex, monkeypatch)
    config = SparseAttention.Config(n_heads=4, n_kv_heads=2, head_dim=16, block=block, n_window=2, n_random=1)
    sparse = SparseAttention(config, Site(d_model=64, max_seq_len=768, causal=causal))
    length = 128 * 4 + 77
    q, k, v = (draw(2, length, heads, 16).detach() for heads in (4, 2, 2))  # gradients it has on CUDA alone
    assert sparse.on_cuda() == "flex attention, the same blocks"
    y, wanted = sparse(q, k, v, context(length))[0], sparse.reference(q, k, v, context(length))[0]
    torch.testing.assert_close(y, wanted, rtol=1e-6, atol=1e-8)

    blocks = -(-length // block)
    mask = flex.block_mask(sparse.table[:blocks, :blocks], block, length, causal=causal)
    assert mask.BLOCK_SIZE == (128, 128)
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    place = torch.arange(length)
    seen = sparse.table[place.unsqueeze(1) // block, place // block]
    seen = seen & (place.unsqueeze(1) >= place) if causal else seen
    walked = torch.zeros_like(seen)
    for whole, number, index in (
        (False, mask.kv_num_blocks, mask.kv_indices),
        (True, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        for row in range(number.shape[-1]):
            for column in index[0, 0, row, : number[0, 0, row]].tolist():
                tile = slice(row * 128, (row + 1) * 128), slice(column * 128, (column + 1) * 128)
                assert not walked[tile].any()
                assert seen[tile].all() if whole else seen[tile].any()
                walked[tile] = True
    assert torch.equal(seen & walked, seen)


def test_blocks_that_kernels_do_not_take_are_said() -> None:
    """Smaller tiles, wider heads: the plain path stays, and says why."""
    site = Site(d_model=64, max_seq_len=640)
    sparse = SparseAttention(SparseAttention.Config(n_heads=4, n_kv_heads=4, head_dim=16, block=48), site)
    assert "that divide 128, or that it divides, not 48" in sparse.on_cuda()
    local = LocalAttention(LocalAttention.Config(n_heads=4, n_kv_heads=4, head_dim=12, window=5), site)
    assert "multiples of 8 up to 256, not 12" in local.on_cuda()


def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for flash-linear-attention: both rules token by token, with heads alike and states head by head."""

    def simple(
        q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, *,
        scale: float, initial_state: Tensor | None, output_final_state: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert q.shape == k.shape
        assert q.shape[:3] == v.shape[:3]
        assert output_final_state
        h = q.new_zeros(*v.shape[:1], *v.shape[2:3], q.shape[3], v.shape[3])
        h = h if initial_state is None else initial_state.to(q.dtype)
        found = []
        for t in range(q.shape[1]):
            h = h if g is None else h * g[:, t].to(q.dtype).exp()[..., None, None]
            h = h + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
            found.append(scale * torch.einsum("bhd,bhde->bhe", q[:, t], h))
        return torch.stack(found, 1), h

    def delta(
        q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, beta: Tensor, scale: float, initial_state: Tensor,
        output_final_state: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert q.shape == k.shape
        assert q.shape[:3] == v.shape[:3]
        assert output_final_state
        h, found = initial_state.to(q.dtype), []
        for t in range(q.shape[1]):
            h = h * g[:, t].to(q.dtype).exp()[..., None, None]
            new = beta[:, t].unsqueeze(-1) * (v[:, t] - torch.einsum("bhd,bhde->bhe", k[:, t], h))
            h = h + k[:, t].unsqueeze(-1) * new.unsqueeze(-2)
            found.append(scale * torch.einsum("bhd,bhde->bhe", q[:, t], h))
        return torch.stack(found, 1), h

    for name, rules in {
        "simple_gla": {"chunk_simple_gla": simple},
        "gated_delta_rule": {"chunk_gated_delta_rule": delta},
    }.items():
        module: Any = ModuleType(f"fla.ops.{name}")
        vars(module).update(rules)
        monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    everywhere(fla, monkeypatch)


def test_linear_attention_hands_over_its_sums(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of heads share keys, and a state goes in and comes out with one entry a key head."""
    kernels(monkeypatch)
    monkeypatch.setattr(Tensor, "float", lambda self: self)  # states would be rounded
    linear = LinearAttention(
        LinearAttention.Config(n_heads=6, n_kv_heads=3, head_dim=5), Site(d_model=30, max_seq_len=64)
    )
    q, k, v = draw(2, 17, 6, 5), draw(2, 17, 3, 5), draw(2, 17, 3, 5)
    state = {"kv": draw(2, 3, 5, 5).detach().abs(), "k": draw(2, 3, 5).detach().abs()}
    (y, after), (z, wanted) = linear(q, k, v, context(17), state), linear.reference(q, k, v, context(17), state)
    agrees(y, z, [q, k, v])
    assert after is not None
    assert wanted is not None
    for name in wanted:
        agrees(after[name], wanted[name], [k])


@pytest.mark.parametrize("mixer", [StateSpaceAttention, GatedDeltaAttention])
def test_mixers_hand_over_their_rule(mixer: Any, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule's decays, shares and states go to the kernel and back."""
    kernels(monkeypatch)
    # fp32 inside the call that casts decays: both paths are compared as closely as that allows.
    monkeypatch.setattr(Tensor, "float", lambda self: self)
    options = mixer.trials[1]
    layer = mixer(mixer.Config(**options), Site(d_model=36, max_seq_len=64)).double()
    x = draw(2, 13, 36)
    state = {name: rule.empty(2, 0, torch.float64, x.device) for name, rule in layer.declared().items()}
    state = {name: torch.randn_like(old) for name, old in state.items()}
    (y, after), (z, wanted) = layer(x, context(13), state), layer.reference(x, context(13), state)
    agrees(y, z, [x, *layer.parameters()])
    for name in wanted:
        torch.testing.assert_close(after[name], wanted[name], rtol=1e-6, atol=1e-8)
