"""What a model is given: raw tensors by name, declared by the parts that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Input:
    """Declare one tensor that a model takes: its dimensions (names where they vary) and its dtype.

    `high`: values of an int64 input are below it. `optional`: a call may leave it out, and means zeros.
    """

    dims: tuple[str | int, ...]
    dtype: Literal["int64", "float"]
    high: int = 0
    optional: bool = False
