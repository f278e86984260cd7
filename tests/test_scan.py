"""Scans against their loops, where decays are extreme."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from transom.core.scan import _PEAKS, _SUMS, _doubling, _in_blocks, decaying_sums, falling_peaks


def looped(a: Tensor, b: Tensor, h: Tensor, peaks: bool) -> Tensor:
    """Return h_t step by step, from h on."""
    found = []
    for t in range(b.shape[1]):
        h = torch.maximum(a[:, t] + h, b[:, t]) if peaks else a[:, t] * h + b[:, t]
        found.append(h)
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("length", [2, 3, 8, 9, 31, 64, 65, 133])
@pytest.mark.parametrize("peaks", [False, True])
def test_both_ways_are_the_loop(length: int, peaks: bool) -> None:
    law = _PEAKS if peaks else _SUMS
    logs = -torch.logspace(-6, 3, 11, dtype=torch.float64).repeat(2, length, 1) * torch.rand(2, length, 11)
    a = torch.where(torch.rand(2, length, 11) < 0.2, -math.inf if peaks else 0.0, logs if peaks else logs.exp())
    b = torch.randn(2, length, 11, dtype=torch.float64) * 10.0 ** torch.randint(-9, 9, (2, length, 11))
    first = torch.randn(2, 11, dtype=torch.float64) * 10.0 ** torch.randint(-9, 9, (2, 11))
    wanted = looped(a, b, first, peaks)
    assert bool(wanted.isfinite().all())
    for way in (_in_blocks(a, b, first, law), _doubling(a, b, first, 200, law)):
        torch.testing.assert_close(way, wanted, rtol=1e-9, atol=1e-9)


def test_one_decay_for_several_sums() -> None:
    a, b, first = torch.rand(1, 21, 1, 5), torch.randn(3, 21, 2, 5), torch.randn(3, 2, 5)
    wanted = looped(a.expand(3, -1, 2, -1), b, first, False)
    torch.testing.assert_close(_in_blocks(a, b, first, _SUMS), wanted)
    torch.testing.assert_close(_doubling(a, b, first, 21, _SUMS), wanted)


@pytest.mark.parametrize(("scan", "peaks"), [(decaying_sums, False), (falling_peaks, True)])
@pytest.mark.parametrize("length", [0, 1, 2, 13])
def test_few_tokens_go_on_from_what_was(scan: Callable[..., Tensor], peaks: bool, length: int) -> None:
    a, b, first = torch.rand(1, length, 5), torch.randn(3, length, 5), torch.randn(3, 5)
    every = torch.cat([first.unsqueeze(1), scan(a, b, first, 32)], dim=1)
    wanted = torch.stack([first, *looped(a.expand(3, -1, -1), b, first, peaks).unbind(1)], dim=1) if length else every
    assert every.shape == (3, 1 + length, 5)
    torch.testing.assert_close(every, wanted)
