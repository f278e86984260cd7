"""Row 22: fp16 and bf16 are as good as the reference's own, and finite wherever the result can be written down."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.choice import Choices
from ...core.tokens import Tokens
from ..cases import MAX_SEQ_LEN
from ..places import everywhere, hooks, only
from ..registered import row
from ..stacks import cast_all
from ..subjects import Subject
from ..trial import Trial
from .values import COMPUTING, REFERRED

HALVES = (torch.float16, torch.bfloat16)


@row(22, "the error is at most twice the reference's own", kinds=REFERRED)
@torch.no_grad()
def as_good_as_the_reference(subject: Subject, trial: Trial) -> None:
    drawn = subject.inputs(trial.size("batch", (3,)), trial.size("length", (37, 71)))
    for dtype in HALVES:
        inputs = cast_all(cast_all(drawn, dtype), torch.float64)
        half = subject.build(dtype)
        made = Choices()
        fast = subject.call(half, *cast_all(inputs, dtype), choices=made)
        # What is chosen is chosen for all three: errors tell of rounding where they look at the same.
        taken = Choices(made.chosen)
        exact = subject.call(subject.build(dtype).double(), *inputs, reference=True, choices=taken)
        trial.alike(made, taken, dtype)
        slow = subject.call(half, *cast_all(inputs, dtype), reference=True, choices=Choices(made.chosen))
        # Both round the result once: no error below that is the component's.
        allowed = 2 * max(_off(slow, exact), torch.finfo(dtype).eps / 4)
        trial.within(_off(fast, exact), allowed, f"the root mean square of the errors in {dtype}", fast.shape)


def _off(got: Tensor, want: Tensor) -> float:
    """Return the root mean square of the errors, relative to that of the wanted values."""
    return float((got.double() - want).square().mean().sqrt() / want.square().mean().sqrt())


def _rounds(subject: Subject) -> bool:
    return subject.hook != "score"


def _wide(cls: type[Any]) -> str:
    return (
        "its scores are summed wide, where nobody rounds" if cls.kind == "position" and cls.hooks == {"score"} else ""
    )


@row(22, "small and large inputs stay finite", kinds=tuple(kind for kind in COMPUTING if kind != "embedding"),
     places=partial(only, _rounds, everywhere), excuse=_wide)  # fmt: skip
@torch.no_grad()
def small_and_large_inputs(subject: Subject, trial: Trial) -> None:
    inputs = subject.inputs(trial.size("batch", (3,)), trial.size("length", (37,)))
    for dtype in HALVES:
        module, wide = subject.build(dtype), subject.build(dtype).double()
        for scale in (1e-3, 1e3):
            scaled = cast_all(tuple(x * scale for x in inputs), dtype)
            exact = subject.call(wide, *cast_all(scaled, torch.float64))
            if exact.abs().max() < torch.finfo(dtype).max / 4:  # else the result itself can't be written down
                trial.finite(subject.call(module, *scaled), what=f"the result in {dtype} of inputs of {scale:g}")


@row(
    22,
    "far positions are as exact as near ones",
    kinds=("position",),
    places=partial(only, _rounds, hooks),
    excuse=_wide,
)
@torch.no_grad()
def far_positions(subject: Subject, trial: Trial) -> None:
    length = trial.size("length", (37,))
    (x,) = subject.inputs(trial.size("batch", (3,)), length)
    tokens = Tokens(torch.arange(MAX_SEQ_LEN - length, MAX_SEQ_LEN).unsqueeze(0))
    for dtype in HALVES:
        half, wide = subject.build(dtype), subject.build(dtype).double()
        got = getattr(half, subject.hook)(x.to(dtype), tokens)
        exact = getattr(wide, subject.hook)(x.to(dtype).double(), tokens)
        allowed = 2 * torch.finfo(dtype).eps
        trial.within(_off(got, exact), allowed, f"the root mean square of the errors in {dtype}, far out", got.shape)


@row(22, "a norm takes small and large inputs alike", kinds=("norm",))
@torch.no_grad()
def norms_of_any_scale(subject: Subject, trial: Trial) -> None:
    (x,) = subject.inputs(trial.size("batch", (3,)), trial.size("length", (37,)))
    for dtype in HALVES:
        scaled = (x * 1e3).to(dtype)
        got = subject.call(subject.build(dtype), scaled)
        exact = subject.call(subject.build(dtype).double(), scaled.double())
        allowed = 2 * torch.finfo(dtype).eps
        trial.within(_off(got, exact), allowed, f"the root mean square of the errors in {dtype} at 1e3", got.shape)
