"""Every test of this package draws its own odd shapes and numbers, the same in every run."""

from __future__ import annotations

import random
import zlib

import pytest
import torch


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Return a generator seeded by the test's own name; torch's is seeded alike."""
    seed = zlib.crc32(request.node.name.encode())
    torch.manual_seed(seed)
    return random.Random(seed)
