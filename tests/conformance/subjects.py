"""Treat every kind of component that computes alike: build it, draw its inputs, call it or its reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from transom.core.embedding import Embedding
from transom.core.tokens import Tokens

from . import harness
from .harness import D_MODEL, Case


@dataclass(frozen=True)
class Subject:
    """A component at one place, as a function of tensors."""

    case: Case
    causal: bool = True
    cross: bool = False
    hook: str = ""

    def __str__(self) -> str:
        where = "cross" if self.cross else "causal" if self.causal else "two_sided"
        return "-".join(filter(None, (self.case.cls.kind, str(self.case), self.hook, where)))

    @property
    def kind(self) -> str:
        """Return the component's kind."""
        return cast(str, self.case.cls.kind)

    def raw(self, **facts: Any) -> nn.Module:
        """Build the component as its constructor leaves it; a head behind the embedding that it may be tied to."""
        facts = {"causal": self.causal and not self.cross, "cross": self.cross} | facts
        site = harness.site_of(self.case, **facts)
        if self.kind != "head":
            return cast(nn.Module, self.case.part.build(site))
        table = next(case for case in harness.bases("embedding") if "vocab_size" in case.config.__dataclass_fields__)
        embedding = table.part.build(site)
        return nn.ModuleList([embedding, self.case.part.build(site, embedding)])

    def build(self, dtype: torch.dtype = torch.float64, **facts: Any) -> nn.Module:
        """Build the component with weights off their first values."""
        return cast(nn.Module, harness.shaken(self.raw(**facts), dtype=dtype))

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
        x = harness.vectors(batch, length, width)
        return (x, harness.vectors(batch, length + 4, width)) if self.cross else (x,)

    def call(self, module: Any, *inputs: Tensor, reference: bool = False) -> Tensor:
        """Compute the component's output."""
        x = inputs[0]
        module = module[-1] if self.kind == "head" else module
        run: Callable[..., Any] = module.reference if reference else module
        if self.kind == "position":
            tokens = Tokens(torch.arange(x.shape[1], device=x.device).unsqueeze(0))
            if self.hook == "score":
                return cast(Tensor, module.score(tokens, tokens, *inputs))
            return cast(Tensor, getattr(module, self.hook)(x, tokens))
        if self.kind == "embedding":
            return cast(Tensor, run(**dict(zip(module.inputs(), inputs, strict=True))))
        if self.kind in ("norm", "head"):
            return cast(Tensor, run(x))
        context = harness.context(x, causal=self.causal and not self.cross)
        if self.cross:
            pos = torch.arange(inputs[1].shape[1], device=x.device).unsqueeze(0)
            context = harness.context(x, causal=False, memory=inputs[1], memory_tokens=Tokens(pos))
        return cast(Tensor, run(x, context)[0])

    def shape(self, *inputs: Tensor) -> tuple[int, ...]:
        """Return the declared shape of the output."""
        x = inputs[0]
        batch, length = x.shape[:2]
        if self.kind == "embedding":
            grid = (x.shape[-1] // harness.SMALL["patch_size"]) ** 2 + getattr(self.case.config, "class_token", 0)
            return (batch, length if x.dim() == 2 else grid, D_MODEL)
        if self.kind == "head":
            size = harness.SMALL["vocab_size"] if self.case.cls.per_token else harness.SMALL["n_classes"]
            return (batch, length, size) if self.case.cls.per_token else (batch, size)
        return (1, 6, length, length) if self.hook == "score" else tuple(x.shape)


def subjects(*kinds: str) -> list[Subject]:
    """Return every component of some kinds (all that compute, when none is named), at every place that it can take."""
    found = [Subject(case, causal) for case, causal in harness.directed(harness.cases("attention"))]
    found += [Subject(case, cross=True) for case in harness.able("cross")]
    found += [Subject(case, causal, hook=hook) for case in harness.cases("position")
              for causal in (True, False) for hook in sorted(case.cls.hooks)]  # fmt: skip
    found += [Subject(case) for kind in ("norm", "feedforward", "embedding", "head") for case in harness.cases(kind)]
    return [subject for subject in found if not kinds or subject.kind in kinds]


def with_reference() -> list[Subject]:
    """Return the subjects of the kinds whose contract has a reference."""
    return [subject for subject in subjects() if subject.kind != "position"]


def floats(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return what of the inputs and parameters can have a gradient, asked to have one."""
    return [*(x.requires_grad_() for x in inputs if x.is_floating_point()), *module.parameters()]
