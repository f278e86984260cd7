"""Where the norms and residuals of a block stand: what a spec says of it, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Placement = Literal["pre", "post", "sandwich", "parallel", "parallel_norms"]
Residual = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Say how what sublayers add joins the vectors x on their way through a block.

    `residual`: whether it is added to x as it is `before` the norm in front of it, or `after` it: norm(x) + f(norm(x)),
    as BLOOM may (Le Scao et al. 2022). `dropout`: the rate of dropping it. `halvings`: how often x is halved on its way
    here, as what is added must be, and how often on its way to the next layer. `wide`: whether x is summed, and handed
    on, at least in fp32.
    """

    residual: Residual = "before"
    dropout: float = 0.0
    halvings: tuple[int, int] = (0, 0)
    wide: bool = False


PLAIN = Stream()


def norms_around(placement: Placement, name: str) -> tuple[str | None, str | None, str | None]:
    """Return the names of the norms before a sublayer, after it, and after its residual."""
    match placement:
        case "pre" | "parallel_norms":
            return f"{name}_norm", None, None
        case "post":
            return None, None, f"{name}_norm"
        case "sandwich":
            return f"{name}_norm", f"after_{name}_norm", None
        case "parallel":
            return None, None, None


def residual_fits(placement: Placement, residual: Residual) -> None:
    """Raise ValueError where no one norm stands before a sublayer, after which its residual could be taken."""
    why = {"post": "no norm stands before its sublayers", "parallel_norms": "each sublayer has a norm of its own"}
    if residual == "after" and placement in why:
        raise ValueError(f"residual: there is none after the norm where placement is {placement}: {why[placement]}")


def norm_names(placement: Placement, sublayers: Sequence[str]) -> list[str]:
    """Return which norms a block of this placement takes, by the names that `Block` expects."""
    if placement == "parallel":
        return ["shared"]
    return [*sublayers, *(f"after_{name}" for name in sublayers if placement == "sandwich")]
