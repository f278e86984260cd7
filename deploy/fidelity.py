"""What a smaller graph costs in truth: its logits against the exact graph's, on held-out text where there is some."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.head import Head
from ..core.objective import Objective, Prepared
from ..errors import DataError, TransomError
from .manifest import is_mask
from .report import Figures
from .rows import Arrays, Exported, drawn, lacking, read
from .session import providers

TOKENS = 2048
"""Held-out tokens that are read, in whole rows and at least one."""


class Samples(Protocol):
    """Give rows of a run's data as its objective prepares them."""

    @property
    def objective(self) -> Objective:
        """Say what the model was asked for; raise DataError where the data can't be read."""
        ...

    def held_out(self, tokens: int) -> Prepared:
        """Return the first held-out rows of so many tokens together, and at least one."""
        ...

    def learned(self, rows: int) -> list[Prepared]:
        """Return rows that the model was trained on, one after the other."""
        ...


def figures(precision: str, exact: Exported, other: Exported, samples: Samples | None) -> Figures:
    """Read the same rows with the exact graphs and with others of the same model, and compare what they give."""
    provider, unknown = providers()[0], "no data"
    prepared: Prepared | None = None
    if samples is not None:
        try:
            prepared = samples.held_out(TOKENS)
        except DataError as error:
            unknown = str(error)
    inputs = drawn(exact.graphs) if prepared is None else {n: t.numpy() for n, t in prepared.inputs.items()}
    if prepared is not None and (lost := lacking(exact.graphs, inputs)):
        prepared, unknown, inputs = None, f"the data gives no {lost}", drawn(exact.graphs)
    wanted, found = (read(each, provider, inputs) for each in (exact, other))
    rows = next(iter(inputs.values()))
    what = "drawn inputs" if prepared is None else "held-out data"
    losses: tuple[float | None, float | None] = (None, None)
    if prepared is not None and samples is not None:
        losses, unknown = _losses(samples.objective, prepared, wanted, found)
    return Figures(
        precision=precision,
        provider=provider,
        read=f"{len(rows)} rows of {what}",
        bytes=other.size,
        exact_bytes=exact.size,
        **_differences(wanted, found, inputs),
        exact_loss=losses[0],
        loss=losses[1],
        unknown=unknown,
    )


def _differences(wanted: Arrays, found: Arrays, inputs: Arrays) -> dict[str, Any]:
    """Compare the logits of real tokens; hidden states where there are no logits."""
    names = [name for name in wanted if name.startswith("logits")]
    pairs = [_real(wanted[name], found[name], inputs) for name in names or wanted]
    apart = [other.astype(np.float64) - exact for exact, other in pairs]
    squares = sum(float(np.square(each).sum()) for each in apart)
    power = sum(float(np.square(exact.astype(np.float64)).sum()) for exact, _ in pairs)
    largest = max(float(np.abs(exact).max(initial=0)) for exact, _ in pairs)
    measured: dict[str, Any] = {
        "error": max(float(np.abs(each).max(initial=0)) for each in apart) / (largest or 1.0),
        "rms": (squares / (power or 1.0)) ** 0.5,
    }
    if names:
        measured |= choices(*pairs[0], noise=float(np.sqrt(np.square(apart[0]).mean())))
    return measured


def _real(exact: NDArray[Any], other: NDArray[Any], inputs: Arrays) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what belongs to real tokens, (tokens, width), of two tensors (B, T, width) or (B, width)."""
    masks = (m.astype(bool) for n, m in inputs.items() if is_mask(n) and m.shape == exact.shape[:-1])
    mask: NDArray[np.bool_] = next(masks, np.ones(exact.shape[:-1], dtype=bool))
    return exact[mask], other[mask]


def choices(exact: NDArray[Any], other: NDArray[Any], noise: float) -> dict[str, float]:
    """Compare choices and distributions, (tokens, V); a choice is a near tie where it is apart by less than `noise`."""
    rows = np.arange(len(exact))
    chosen, instead = exact.argmax(-1), other.argmax(-1)
    differs = chosen != instead
    margin = exact[rows, chosen] - exact[rows, instead]
    log_p, log_q = (torch.log_softmax(torch.from_numpy(each).double(), -1) for each in (exact, other))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return {
        "same": float(1 - differs.mean()),
        "ambiguous": float((differs & (margin < noise)).mean()),
        "kl": max(0.0, float(kl)),
    }


def _losses(
    objective: Objective, prepared: Prepared, wanted: Arrays, found: Arrays
) -> tuple[tuple[float | None, float | None], str]:
    """Return the objective's mean loss of both, or why it can't be told from the logits of a graph."""
    if objective.heads(objective.config):
        return (None, None), f"{objective.name} asks several heads"
    if "logits" not in wanted:
        return (None, None), "the graph gives no logits"
    try:
        return (_loss(objective, prepared, wanted["logits"]), _loss(objective, prepared, found["logits"])), ""
    except (TransomError, RuntimeError, IndexError, ValueError) as error:
        first = str(error).partition("\n")[0]
        return (None, None), f"{objective.name} can't be computed from a graph's logits: {first}"


def _loss(objective: Objective, prepared: Prepared, logits: NDArray[Any]) -> float:
    """Return the mean loss of logits, which stand for hidden states that a head reads as they are."""
    head = cast(Head, _AsTheyAre())
    loss = objective.loss(torch.from_numpy(logits).float(), head, prepared)
    return float(loss.total / loss.count.clamp(min=1))


class _AsTheyAre:
    """Be a head for hidden states that are logits already."""

    def __call__(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return hidden

    def projection(self) -> None:
        """Say that there is nothing to apply in chunks."""
