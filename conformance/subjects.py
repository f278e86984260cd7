"""Treat every kind of component that computes alike: build it, draw its inputs, call it or its reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.choice import Choices
from ..core.embedding import Embedding
from ..core.tokens import Tokens
from .cases import D_MODEL, Case, site_of
from .companions import text_embedding
from .stacks import across, bound, context, scores, shaken, vectors


@dataclass(frozen=True)
class Subject:
    """A component at one place.

    `causal`, `cross`: the site of an attention, and what a position serves. `hook`: of a position. `beside`: the
    component that it stands with, where a row goes through several: an attention's position, a topology's head.
    """

    case: Case
    causal: bool = True
    cross: bool = False
    hook: str = ""
    beside: Case | None = None

    def __str__(self) -> str:
        where = "cross" if self.cross else "causal" if self.causal else "two_sided"
        beside = "" if self.beside is None else f"with_{self.beside}"
        placed = where if self.kind in ("attention", "position") else ""
        return "-".join(filter(None, (self.case.label, self.hook, beside, placed)))

    @property
    def kind(self) -> str:
        """Return the component's kind."""
        return cast(str, self.case.cls.kind)

    def of(self, case: Case) -> Subject:
        """Return the same place with another choice of options."""
        return replace(self, case=case)

    def raw(self, **facts: Any) -> nn.Module:
        """Build the component as its constructor leaves it; a head behind the embedding that it may be tied to."""
        facts = {"causal": self.causal and not self.cross, "cross": self.cross} | facts
        site = site_of(self.case, **facts)
        site = site.but(n_layers=1) if self.kind == "position" else site
        if self.kind != "head":
            return cast(nn.Module, self.case.part.build(site))
        embedding = text_embedding().part.build(site)
        return nn.ModuleList([embedding, self.case.part.build(site, embedding)])

    def build(self, dtype: torch.dtype = torch.float64, **facts: Any) -> nn.Module:
        """Build the component with weights off their first values."""
        return cast(nn.Module, bound(shaken(self.raw(**facts), dtype=dtype), dtype))

    def inputs(self, batch: int, length: int, width: int = D_MODEL) -> tuple[Tensor, ...]:
        """Draw inputs in fp64; ids are int64."""
        if self.kind == "embedding":
            sizes = {"batch": batch, "sequence": length}
            declared = cast(Embedding, self.raw()).inputs().values()
            shapes = [tuple(sizes[d] if isinstance(d, str) else d for d in put.dims) for put in declared]
            return tuple(
                torch.randint(put.high, shape) if put.dtype == "int64" else torch.randn(shape, dtype=torch.float64)
                for put, shape in zip(declared, shapes, strict=True)
            )
        if self.hook in ("rotate", "score"):
            q = torch.randn(batch, length, 6, width // 6, dtype=torch.float64)
            return (q,) if self.hook == "rotate" else (q, torch.randn_like(q[:, :, :2]))
        x = vectors(batch, length, width)
        return (x, vectors(batch, length + 4, width)) if self.cross else (x,)

    def call(self, module: Any, *inputs: Tensor, reference: bool = False, choices: Choices | None = None) -> Tensor:
        """Compute the component's output; `choices` records what an attention chooses, or says what it does."""
        x = inputs[0]
        module = module[-1] if self.kind == "head" else module
        run: Callable[..., Any] = module.reference if reference else module
        if self.kind == "position":
            tokens = Tokens(torch.arange(x.shape[1], device=x.device).unsqueeze(0))
            if self.hook == "score":
                return scores(module, tokens, tokens, *inputs)
            return cast(Tensor, getattr(module, self.hook)(x, tokens))
        if self.kind == "embedding":
            return cast(Tensor, module.finish(run(**dict(zip(module.inputs(), inputs, strict=True)))))
        if self.kind in ("norm", "head"):
            return cast(Tensor, run(x))
        here = across(*inputs) if self.cross else context(x, causal=self.causal, choices=choices)
        return cast(Tensor, run(x, here)[0])

    def fits(self, y: Tensor, *inputs: Tensor) -> bool:
        """Say whether an output has the declared shape for these inputs; numbers that none declares are left open."""
        x = inputs[0]
        batch, length = x.shape[:2]
        if self.kind == "embedding":
            columns = length if self.case.cls.maskable else y.shape[1]
            return y.shape == (batch, columns, D_MODEL)
        if self.kind == "head":
            return y.shape[:-1] == ((batch, length) if self.case.cls.per_token else (batch,))
        if self.hook == "score":
            return y.shape[0] in (1, batch) and y.shape[1:] == (6, length, length)
        return y.shape == x.shape


def floats(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return what of the inputs and parameters can have a gradient, asked to have one."""
    return [*(x.requires_grad_() for x in inputs if x.is_floating_point()), *module.parameters()]
