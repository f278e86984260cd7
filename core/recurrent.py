"""The shell of recurrent mixers: everything but the cell, over padding, documents, both directions and exports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Declaration, Mixer, is_exporting
from .component import Site
from .context import Context
from .linear import Linear
from .state import Declared, Memories, Remembered

RECURRENT = Declaration(
    can=frozenset({"causal", "two_sided", "documents"}),
    ignores=frozenset({"rotate"}),
    lacks={
        "score": "it carries one summary from token to token, and no pair of tokens ever has a score",
        "cross": "it reads one sequence in order, and has no queries to put to a memory",
        "pairs": "it reads tokens in the order of their columns, and knows no other",
        "compile": "it takes as many steps as there are tokens, and a graph has a fixed number",
    },
)


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """d_hidden: width of what is carried, for each direction (d_model when left out)."""

    d_hidden: int | None = None

    def __post_init__(self) -> None:
        if self.d_hidden is not None and self.d_hidden < 1:
            raise ValueError(f"d_hidden: {self.d_hidden} is not a width; at least 1")


class Recurrent(Mixer, ABC):
    """Carry a summary from token to token, and from both ends where both sides are seen (Schuster and Paliwal 1997).

    A child names its gates and what it carries, and computes one step. Weights are laid out as torch's `nn.RNNBase`
    lays them, and named by direction. `onnx_order`: the place of each ONNX gate among torch's.
    """

    declares: ClassVar[Declaration] = RECURRENT
    gates: ClassVar[int]
    carries: ClassVar[tuple[str, ...]] = ("h",)
    onnx_op: ClassVar[str]
    onnx_order: ClassVar[tuple[int, ...]]

    Config = RecurrentConfig

    def __init__(self, config: RecurrentConfig, site: Site) -> None:
        super().__init__(config, site)
        self.width = config.d_hidden or site.d_model
        self.directions = ("forward",) if site.causal else ("forward", "backward")
        rows = self.gates * self.width
        self.weights = nn.ParameterDict()
        for way in self.directions:
            self.weights[f"{way}_input"] = nn.Parameter(torch.empty(rows, site.d_model))
            self.weights[f"{way}_hidden"] = nn.Parameter(torch.empty(rows, self.width))
            self.weights[f"{way}_input_bias"] = nn.Parameter(torch.empty(rows))
            self.weights[f"{way}_hidden_bias"] = nn.Parameter(torch.empty(rows))
        self.out = Linear(len(self.directions) * self.width, site.d_model, gain=(2 * site.n_layers) ** -0.5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw first weights that keep the scale of what is carried; biases start at 0."""
        for weight in self.weights.values():
            if weight.dim() == 1:
                nn.init.zeros_(weight)
            else:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    @staticmethod
    @abstractmethod
    def cell(from_input: Tensor, from_hidden: Tensor, carry: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what is carried on, from both products (B, gates * width), biases included, and what came in."""

    @staticmethod
    @abstractmethod
    def fused(x: Tensor, carry: Sequence[Tensor], weights: list[Tensor], both: bool) -> tuple[Tensor, ...]:
        """Run torch's kernel over x (B, T, C), carry (directions, B, width): outputs (B, T, ...) and the next carry."""

    def declared(self) -> Declared:
        """Keep what is carried."""
        return {name: Remembered(("batch", self.width), "fixed") for name in self.carries}

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Run torch's kernel where no row is padded or holds several documents, else step by step."""
        if is_exporting():
            y, carry = self._as_operator(x, context, state)
        elif context.tokens.plain and x.shape[1] > 0 and x.shape[0] > 0:
            weights = [self.weights[f"{way}_{part}"] for way in self.directions for part in _PARTS]
            y, *after = self.fused(x, self._carried(x, state), weights, len(self.directions) == 2)
            carry = [t[0] for t in after]
        else:
            return self.reference(x, context, state)
        return self.out(y), None if state is None else dict(zip(self.carries, carry, strict=True))

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Run the cell token by token, holding what is carried over padding and dropping it between documents."""
        valid = context.tokens.valid
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
        carry = [t[0] for t in self._carried(x, state)]
        y, carry = self._scan("forward", x, carry, real, context.tokens.doc)
        if "backward" in self.directions:
            turn = _turned(real)
            doc = None if context.tokens.doc is None else context.tokens.doc.gather(1, turn)
            start = [torch.zeros_like(t) for t in carry]
            back, _ = self._scan("backward", _take(x, turn), start, real, doc)
            y = torch.cat([y, _take(back, turn)], dim=-1)
        return self.out(y), None if state is None else dict(zip(self.carries, carry, strict=True))

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        return f"torch {type(self).name}"

    def _carried(self, x: Tensor, state: Memories | None) -> list[Tensor]:
        """Return what comes in, each (directions, B, width)."""
        if state is not None:
            return [state[name].unsqueeze(0) for name in self.carries]
        zeros = self.weights["forward_input"].new_zeros(len(self.directions), x.shape[0], self.width)
        return [zeros for _ in self.carries]

    def _scan(
        self, way: str, x: Tensor, carry: list[Tensor], real: Tensor, doc: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        weights = [self.weights[f"{way}_{part}"] for part in _PARTS]
        from_input = F.linear(x, weights[0], weights[2])
        ended = None if doc is None else torch.cat([doc[:, :1] != doc[:, :1], doc[:, 1:] != doc[:, :-1]], dim=1)
        outputs = []
        for t in range(x.shape[1]):
            if ended is not None:
                carry = [c.masked_fill(ended[:, t, None], 0.0) for c in carry]
            after = self.cell(from_input[:, t], F.linear(carry[0], weights[1], weights[3]), carry)
            carry = [torch.where(real[:, t, None], new, old) for new, old in zip(after, carry, strict=True)]
            outputs.append(carry[0])
        return torch.stack(outputs, dim=1) if outputs else x.new_zeros(x.shape[0], 0, self.width), carry

    def _as_operator(self, x: Tensor, context: Context, state: Memories | None) -> tuple[Tensor, list[Tensor]]:
        """Return one ONNX operator, which holds its carry over padding and takes any length."""
        batch, length = x.shape[:2]
        ways = len(self.directions)
        order = [slice(g * self.width, (g + 1) * self.width) for g in self.onnx_order]

        def laid(part: str) -> Tensor:
            return torch.stack([torch.cat([self.weights[f"{w}_{part}"][s] for s in order]) for w in self.directions])

        count = context.length
        lengths = torch.full((batch,), length, dtype=torch.int32) if count is None else count.to(torch.int32)
        biases = torch.cat([laid("input_bias"), laid("hidden_bias")], dim=1)
        inputs = [x.transpose(0, 1), laid("input"), laid("hidden"), biases, lengths, *self._carried(x, state)]
        attrs: dict[str, Any] = {"hidden_size": self.width, "direction": "forward" if ways == 1 else "bidirectional"}
        shapes = [(length, ways, batch, self.width)] + [(ways, batch, self.width)] * len(self.carries)
        y, *carry = torch.onnx.ops.symbolic_multi_out(
            self.onnx_op, inputs, attrs | self.onnx_attrs(), dtypes=[x.dtype] * len(shapes), shapes=shapes
        )
        after = [c[0] for c in carry]
        if count is not None:
            # ONNX Runtime gives 0, not what came in, for a row without tokens.
            idle = (count == 0).unsqueeze(1)
            after = [torch.where(idle, old[0], new) for old, new in zip(self._carried(x, state), after, strict=True)]
        return y.permute(2, 0, 1, 3).flatten(2), after

    def onnx_attrs(self) -> dict[str, Any]:
        """Return further attributes of the ONNX operator."""
        return {}


_PARTS = ("input", "hidden", "input_bias", "hidden_bias")


def _turned(real: Tensor) -> Tensor:
    """Return for each column the one that stands there when every row's real tokens are read backwards, (B, T)."""
    column = torch.arange(real.shape[1], device=real.device).expand(real.shape)
    return torch.where(real, real.sum(1, keepdim=True) - 1 - column, column)


def _take(x: Tensor, columns: Tensor) -> Tensor:
    return x.gather(1, columns.unsqueeze(-1).expand(-1, -1, x.shape[2]))
