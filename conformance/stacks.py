"""Build components at odd sizes, alone or in a stack, and draw the odd inputs that they are given."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..core.block import Block
from ..core.component import Site
from ..core.context import Context
from ..core.embedding import Embedding
from ..core.initialise import initialise, seed_of
from ..core.inputs import Input
from ..core.placement import Placement, Stream, norm_names
from ..core.position import Position
from ..core.stack import Stack
from ..core.state import State
from ..core.sublayer import Sublayer
from ..core.tokens import Tokens
from ..core.watch import Watch
from .cases import D_MODEL, Case, site_of, with_option
from .companions import is_mechanism, versatile


class Vectors(Embedding):
    """Pass vectors on as they are, so that a row may poison them and read their gradients."""

    maskable: ClassVar[bool] = True

    def __init__(self, site: Site) -> None:
        super().__init__(None, site)

    def inputs(self) -> Mapping[str, Input]:
        """Take `x` (B, T, C)."""
        return {"x": Input(("batch", "sequence", self.site.d_model), "float")}

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return x (B, T, C)."""
        return x

    def reference(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return x (B, T, C)."""
        return x

    def asking(self) -> Tensor:
        """Return ones, (C,)."""
        return torch.ones(self.width)


# -- building ---------------------------------------------------------------------------------------------------------


def shaken(module: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """Give a module first weights, and move them all a little: biases of 0 and scales of 1 would hide faults.

    So are buffers that are saved with the weights. A weight's numbers follow from the seed and its name alone, whatever
    else the module has.
    """
    initialise(module, seed)
    with torch.no_grad():
        saved = module.state_dict()
        buffers = [(n, t) for n, t in module.named_buffers() if n in saved and t.is_floating_point()]
        for name, tensor in (*module.named_parameters(), *buffers):
            generator = torch.Generator().manual_seed(seed_of(seed, name))
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    return module.to(dtype).eval()


def sublayer(case: Case, dtype: torch.dtype = torch.float64, **facts: Any) -> Sublayer:
    """Build an attention or a feedforward alone."""
    return cast(Sublayer, shaken(case.part.build(site_of(case, **facts)), dtype=dtype))


def position(case: Case, attention: Case | None = None, **facts: Any) -> Position:
    """Build a positional encoding, for the heads of an attention."""
    return cast(Position, bound(shaken(case.part.build(site_of(attention, n_layers=1, **facts)))))


def bound(module: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Return a module; a position that projects is given attentions to serve, of 2 key heads and of 6."""
    if isinstance(module, Position) and module.projects:
        heads, width = ("n_heads", module.site.n_heads), ("head_dim", module.site.head_dim)
        plain = with_option(with_option(versatile(), *heads), *width)
        cases = {count: with_option(plain, "n_kv_heads", count) for count in (2, 6)}
        # A plain map: what a position serves is no part of it.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            served = {n: shaken(case.part.build(module.site), dtype=dtype) for n, case in cases.items()}
        cast(Any, module).served = served
    return module


def scores(module: Any, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
    """Return what a position adds to scores, with the projections of what `bound` gave it where it projects."""
    if not module.projects:
        return cast(Tensor, module.score(q_tokens, k_tokens, q, k))
    served = (module if hasattr(module, "served") else bound(module, q.dtype)).served[k.shape[2]]
    weight = served.out.weight
    if (weight.dtype, weight.device) != (q.dtype, q.device):
        served = copy.deepcopy(served).to(q.device, q.dtype)
    return cast(Tensor, module.score_with(served, q_tokens, k_tokens, q, k))


def stack(
    attentions: Sequence[Case],
    *,
    positions: Sequence[Case] = (),
    cross: Case | None = None,
    feedforward: Case | None = None,
    norm: Case | None = None,
    placement: Placement = "pre",
    dropout: float = 0.0,
    **facts: Any,
) -> Stack:
    """Build a stack of one block per attention (one block without, where there is none), over `Vectors`, in fp64."""
    site = site_of(attentions[0] if attentions else None, **facts)
    blocks = []
    for case in attentions or (None,):
        chosen = {"attention": case, "cross_attention": cross, "feedforward": feedforward}
        sublayers = {
            name: which.part.build(site.but(cross=True, causal=False) if name == "cross_attention" else site)
            for name, which in chosen.items()
            if which is not None
        }
        names = [] if norm is None else norm_names(placement, list(sublayers))
        norms = {name: norm.part.build(site) for name in names if norm is not None}
        blocks.append(Block(sublayers, norms, placement=placement, stream=Stream(dropout=dropout)))
    last = None if norm is None else norm.part.build(site)
    return cast(
        Stack, shaken(Stack(site, Vectors(site), [p.part.build(site.but(n_layers=1)) for p in positions], blocks, last))
    )


def by_reference(model: Stack) -> Stack:
    """Make every sublayer of a stack run its reference."""
    for block in model.blocks:
        for layer in block.sublayers().values():
            layer.forward = layer.reference  # type: ignore[method-assign, assignment]
    return model


# -- running ----------------------------------------------------------------------------------------------------------


def run(model: Stack, x: Tensor, **given: Any) -> Tensor:
    """Return the hidden states of x (B, T, C); `weights` and `choices` are those of `Watch`."""
    return cast(Tensor, model({"x": x}, watch=_watch(given), **given)[0])


def step(model: Stack, x: Tensor, state: State, **given: Any) -> tuple[Tensor, State]:
    """Return the hidden states of x (B, T, C) and the next state; `given` as in `run`."""
    hidden, after = model({"x": x}, state=state, watch=_watch(given), **given)
    return hidden, after


def _watch(given: dict[str, Any]) -> Watch:
    return Watch(given.pop("weights", None), given.pop("choices", None))


def in_steps(model: Stack, x: Tensor, state: State, sizes: Sequence[int], **given: Any) -> tuple[Tensor, State]:
    """Return the hidden states of x (B, T, C), fed in pieces of these sizes, and the state after them."""
    outputs = []
    for part in x.split(list(sizes), dim=1):
        y, state = step(model, part, state, **given)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def pieces(length: int, size: int) -> list[int]:
    """Return how `length` tokens are cut into pieces of a size, the last of which may be smaller."""
    return [size] * (length // size) + [length % size] * (length % size > 0)


def context(x: Tensor, *, causal: bool = True, first: int = 0, **given: Any) -> Context:
    """Return a hand-made context for x (B, T, ...); `valid` and `doc` describe its tokens, the rest is Context's."""
    pos = torch.arange(first, first + x.shape[1], device=x.device).unsqueeze(0)
    tokens = Tokens(pos, given.pop("valid", None), given.pop("doc", None))
    return Context(tokens, causal, **given)


def across(x: Tensor, memory: Tensor, valid: Tensor | None = None) -> Context:
    """Return the context of x (B, T, C) reading a memory (B, M, C), of which `valid` (B, M) bool is real."""
    pos = torch.arange(memory.shape[1], device=x.device).unsqueeze(0)
    return context(x, causal=False, memory=memory, memory_tokens=Tokens(pos, valid))


# -- odd inputs -------------------------------------------------------------------------------------------------------


def lengths(case: Case) -> tuple[int, ...]:
    """Return odd lengths: for a mechanism past every block and chunk, short for a mixer, which may go step by step."""
    return (37, 71, 131) if is_mechanism(case) else (11, 23, 29)


def vectors(batch: int, length: int, width: int = D_MODEL) -> Tensor:
    """Return random vectors (B, T, C) in fp64."""
    return torch.randn(batch, length, width, dtype=torch.float64)


def documents(batch: int, length: int) -> Tensor:
    """Return document ids (B, T): a row of one, and rows cut at odd places, some shorter than a window."""
    doc = torch.zeros(batch, length, dtype=torch.int64)
    for row in range(1, batch):
        for cut in sorted(torch.randint(1, max(length, 2), (row + 1,)).tolist()):
            doc[row, cut:] += 3
    return doc - 1


def padded(x: Tensor, side: str, lengths: Sequence[int], extra: int = 5) -> tuple[Tensor, Tensor]:
    """Spread the first `lengths[b]` tokens of each row over `extra` more columns: (B, T + extra, C) and its mask."""
    batch, length = x.shape[:2]
    columns = length + extra
    wide, mask = torch.randn(batch, columns, x.shape[2], dtype=x.dtype), torch.zeros(batch, columns, dtype=torch.int64)
    for row, count in enumerate(lengths[:batch]):
        places = {
            "left": torch.arange(columns - count, columns),
            "right": torch.arange(count),
            "inner": torch.randperm(columns)[:count].sort().values,
        }[side]
        wide[row, places], mask[row, places] = x[row, :count], 1
    return wide, mask


def cast_all(inputs: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return inputs with their floating-point tensors in another dtype."""
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
