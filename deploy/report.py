"""What a report says: rows that compare a graph with PyTorch, and figures of what a smaller graph costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Hold one comparison: a case, on one provider, in one precision.

    `errors`: of each output and each tensor of the state, the largest error of all steps relative to the largest
    magnitude; infinite where whole numbers differ or a number is not finite. `agreement`: the share of real tokens
    whose largest logit is the same one; None where there are no logits. `allowed`: the largest error that passes.
    `ambiguous`: the share of those where it is another, but PyTorch has the two apart by less than the root mean
    squared difference of the logits: a near tie. `rms`: that difference relative to the logits. `target`: what the
    graph's operators are for.
    """

    case: str
    provider: str
    precision: str
    allowed: float
    errors: Mapping[str, float]
    agreement: float | None
    ambiguous: float | None = None
    rms: float | None = None
    target: str = ""

    @property
    def worst(self) -> str:
        """Name the tensor with the largest error."""
        return max(self.errors, key=lambda name: self.errors[name])

    @property
    def error(self) -> float:
        """Return the largest error of all tensors."""
        return self.errors[self.worst]

    @property
    def tokens(self) -> str:
        """Say how often the choice is the same, how often another in a near tie, and how often just another."""
        return "" if self.agreement is None else shares(self.agreement, self.ambiguous or 0.0)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Hold what a graph of lower precision differs by from the exact one, on one provider.

    `read`: what both read. `bytes`, `exact_bytes`: of graphs and weights. `error`: the largest difference of any logit
    relative to the largest magnitude. `rms`: the root of the mean squared difference relative to that of the logits.
    `same`: the share of tokens whose largest logit is the same one. `ambiguous`: the share of those where it is not,
    but the exact graph has the two less than the root mean squared difference apart: a near tie. `kl`: from the exact
    distribution to this one, nats a token. `loss`, `exact_loss`: on held-out data, nats a target. `unknown`: why a loss
    is not known. Figures are None where there are no logits. `quantized`: modules whose matrices are codes.
    """

    precision: str
    provider: str
    read: str
    bytes: int
    exact_bytes: int
    error: float
    rms: float
    same: float | None = None
    ambiguous: float | None = None
    kl: float | None = None
    loss: float | None = None
    exact_loss: float | None = None
    unknown: str = ""
    quantized: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.precision}: {_megabytes(self.bytes)} of {_megabytes(self.exact_bytes)}; {self.provider}, on "
            f"{self.read}: error {self.error:.1e}, RMS {self.rms:.1e}"
        ]
        if self.same is not None and self.ambiguous is not None:
            other = 1 - self.same - self.ambiguous
            lines.append(
                f"same token {self.same:.1%}, another in a near tie {self.ambiguous:.1%}, another {other:.1%}; KL "
                f"{self.kl:.2e} nats"
            )
        known = self.loss is not None
        loss = f"{self.exact_loss:.4f} -> {self.loss:.4f} nats" if known else f"not known: {self.unknown}"
        return "\n  ".join([*lines, f"held-out loss {loss}"])


@dataclass(frozen=True)
class Report:
    """Say where exported graphs agree with PyTorch, and by how much smaller ones differ from the exact ones."""

    rows: tuple[Row, ...]
    figures: tuple[Figures, ...] = ()

    def __add__(self, other: Report) -> Report:
        return Report(self.rows + other.rows, self.figures + other.figures)

    @property
    def failed(self) -> tuple[Row, ...]:
        """Return the rows whose error is above what is allowed."""
        return tuple(row for row in self.rows if not row.error <= row.allowed)

    def __str__(self) -> str:
        width = max(len(row.case) for row in self.rows)
        rows = (
            f"{row.case:{width}}  {row.precision}  {row.provider}  error {row.error:.1e} ({row.worst}), allowed "
            f"{row.allowed:.0e}" + (f", {row.tokens}" if row.tokens else "")
            for row in self.rows
        )
        return "\n".join([*rows, *map(str, self.figures)])


def shares(same: float, ambiguous: float) -> str:
    """Say how many tokens are the same, and of the others, where there are any, how many are in a near tie."""
    if same == 1:
        return "same token 100.0%"
    return f"same token {same:.1%}, another in a near tie {ambiguous:.1%}, another {max(0.0, 1 - same - ambiguous):.1%}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
