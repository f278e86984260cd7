"""Build any registered component at odd sizes and give it odd inputs; no component is named here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from transom.core.attention import Mechanism
from transom.core.block import Block, Placement, norm_names
from transom.core.component import Part, Site
from transom.core.context import Context
from transom.core.embedding import Embedding, Input
from transom.core.heads import HeadsConfig
from transom.core.initialise import initialise
from transom.core.position import Position
from transom.core.stack import Stack
from transom.core.state import State
from transom.core.sublayer import Sublayer
from transom.core.tokens import Tokens
from transom.registry.manager import default

D_MODEL = 36  # 6 heads of 6: even, for what turns pairs, and no multiple of 8
MAX_SEQ_LEN = 199

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}

# What an option of this name is set to, required or not, so that small inputs reach every path.
SMALL: dict[str, Any] = {
    "n_heads": 6,
    "window": 5,
    "block": 4,
    "n_window": 2,
    "vocab_size": 37,
    "image_size": 6,
    "patch_size": 3,
    "n_classes": 5,
    "d_ff": 22,
    "rate": 0.4,
}

# Other values that an option of this name is tried with; all values of a Literal and a bool are tried without being
# listed.
OTHERS: dict[str, tuple[Any, ...]] = {
    "n_kv_heads": (2,),
    "head_dim": (10,),
    "scale": (0.3,),
    "window": (8, 1),
    "block": (3,),
    "n_global": (2, 0),
    "n_window": (1,),
    "n_random": (2,),
    "stride": (2,),
    "seed": (5,),
    "kernel": (3, 1),
    "d_hidden": (7,),
    "fraction": (0.67,),
    "theta": (100.0,),
    "max_distance": (41,),
    "std": (0.3,),
    "eps": (1e-3,),
    "channels": (2,),
    "rate": (0.6,),
}


@dataclass(frozen=True)
class Case:
    """A component with one choice of options."""

    cls: type[Any]
    config: Any
    label: str

    def __str__(self) -> str:
        return f"{self.cls.name}-{self.label}"

    @property
    def part(self) -> Part:
        """Return the case as what a spec's choice becomes."""
        return Part(self.cls, self.config)


@functools.cache
def cases(kind: str) -> tuple[Case, ...]:
    """Return every registered component of a kind, each with several choices of options."""
    registry = default()
    classes = [registry.get(kind, name) for name in registry.names(kind, everything=True)]
    return tuple(case for cls in classes for case in _cases_of(cls))


def bases(kind: str) -> tuple[Case, ...]:
    """Return every registered component of a kind once, with the fewest options."""
    return tuple(case for case in cases(kind) if case.label == "base")


def _cases_of(cls: type[Any]) -> Iterator[Case]:
    options = {f.name: f for f in dataclasses.fields(cls.Config)}
    small = {name: SMALL[name] for name in options if name in SMALL}
    missing = [n for n, f in options.items() if n not in small and _required(f)]
    assert not missing, f"harness.SMALL has no value for {cls.name}'s required {', '.join(missing)}"
    yield Case(cls, cls.Config(**small), "base")
    others = {name: values for name in options if (values := _others(cls, name, small))}
    every = cls.Config(**small | {name: values[0] for name, values in others.items()})
    if others:
        yield Case(cls, every, "all")
    for name, values in others.items():
        if name in HeadsConfig.__dataclass_fields__:
            continue  # the shell's own options are the same code in every mechanism: tried together
        for value in values:
            config = cls.Config(**small | {name: value})
            if config != every:
                yield Case(cls, config, f"{name}={value}")


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _others(cls: type[Any], name: str, small: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what else an option may be."""
    hint = get_type_hints(cls.Config, include_extras=True)[name]
    default_value = small.get(name, cls.Config.__dataclass_fields__[name].default)
    if get_origin(hint) is Literal:
        return tuple(value for value in get_args(hint) if value != default_value)
    if hint is bool:
        return (not default_value,)
    marks = getattr(hint, "__metadata__", ())
    if marks and marks[0] != "attention":  # a part: a norm of q and k
        return (bases(marks[0])[-1].part,)
    return OTHERS.get(name, ())


# -- building ---------------------------------------------------------------------------------------------------------


class Vectors(Embedding):
    """Pass vectors on as they are, so that a test may poison them and read their gradients."""

    maskable: ClassVar[bool] = True

    def __init__(self, site: Site) -> None:
        super().__init__(None, site)

    def inputs(self) -> Mapping[str, Input]:
        """Take `x` (B, T, C)."""
        return {"x": Input(("batch", "sequence", self.site.d_model), "float")}

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return x."""
        return x

    reference = forward


def site_of(case: Case | None = None, **facts: Any) -> Site:
    """Return a site of the harness's width; with an attention's case, its heads are those that positions serve."""
    site = Site(d_model=D_MODEL, max_seq_len=MAX_SEQ_LEN, n_layers=2, n_heads=6, head_dim=6).but(**facts)
    if case is not None and isinstance(case.config, HeadsConfig):
        config = case.config.resolved(site.d_model)
        site = site.but(n_heads=config.n_heads, head_dim=config.head_dim)
    return site


def shaken(module: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """Give a module first weights, and move them all a little: biases of 0 and scales of 1 would hide faults."""
    initialise(module, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.to(dtype).eval()


def sublayer(case: Case, dtype: torch.dtype = torch.float64, **facts: Any) -> Sublayer:
    """Build an attention or a feedforward alone."""
    return cast(Sublayer, shaken(case.part.build(site_of(case, **facts)), dtype=dtype))


def position(case: Case, attention: Case | None = None, **facts: Any) -> Position:
    """Build a positional encoding, for the heads of an attention."""
    return cast(Position, shaken(case.part.build(site_of(attention, **facts))))


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
    """Build a stack of one block per attention, over `Vectors`, with weights in fp64."""
    return cast(Stack, shaken(raw_stack(attentions, positions, cross, feedforward, norm, placement, dropout, **facts)))


def raw_stack(
    attentions: Sequence[Case],
    positions: Sequence[Case] = (),
    cross: Case | None = None,
    feedforward: Case | None = None,
    norm: Case | None = None,
    placement: Placement = "pre",
    dropout: float = 0.0,
    **facts: Any,
) -> Stack:
    """Build what `stack` builds, as its constructors leave it."""
    site = site_of(attentions[0] if attentions else None, **facts)
    blocks = []
    for case in attentions or [None]:  # type: ignore[list-item]
        parts = {"attention": (case, site), "cross_attention": (cross, site.but(cross=True, causal=False)),
                 "feedforward": (feedforward, site)}  # fmt: skip
        sublayers = {name: which.part.build(where) for name, (which, where) in parts.items() if which is not None}
        names = [] if norm is None else norm_names(placement, list(sublayers))
        norms = {name: norm.part.build(site) for name in names if norm is not None}
        blocks.append(Block(sublayers, norms, placement=placement, dropout=dropout))
    last = None if norm is None else norm.part.build(site)
    return Stack(site, Vectors(site), [p.part.build(site) for p in positions], blocks, last)


def run(model: Stack, x: Tensor, **given: Any) -> Tensor:
    """Return the hidden states of x (B, T, C)."""
    return model({"x": x}, **given)[0]


def step(model: Stack, x: Tensor, state: State, **given: Any) -> tuple[Tensor, State]:
    """Return the hidden states of x (B, T, C) and the next state."""
    hidden, after = model({"x": x}, state=state, **given)
    assert after is not None
    return hidden, after


def by_reference(model: Stack) -> Stack:
    """Make every sublayer of a stack run its reference."""
    for block in model.blocks:
        for layer in block.sublayers().values():
            layer.forward = layer.reference  # type: ignore[method-assign, attr-defined]
    return model


def context(x: Tensor, *, causal: bool = True, first: int = 0, **given: Any) -> Context:
    """Return a hand-made context for x (B, T, C); `valid` and `doc` describe its tokens, the rest is Context's own."""
    pos = torch.arange(first, first + x.shape[1], device=x.device).unsqueeze(0)
    tokens = Tokens(pos, given.pop("valid", None), given.pop("doc", None))
    return Context(tokens, causal, **given)


# -- what a component declares ----------------------------------------------------------------------------------------


def able(ability: str, *, harmless: bool = False) -> list[Case]:
    """Return the cases of attention that can do something; with `harmless` also those on which it has no effect."""
    return [
        case for case in cases("attention")
        if ability in case.cls.declares.can or (harmless and ability in case.cls.declares.ignores)
    ]  # fmt: skip


def directions(case: Case) -> list[bool]:
    """Return the values of `causal` that an attention's case can be built for."""
    return [causal for causal, name in ((True, "causal"), (False, "two_sided")) if name in case.cls.declares.can]


def directed(chosen: Sequence[Case]) -> list[tuple[Case, bool]]:
    """Return each attention's case with each direction that it can run in."""
    return [(case, causal) for case in chosen for causal in directions(case)]


def hooked(hook: str) -> list[Case]:
    """Return the cases of positions with this hook."""
    return [case for case in cases("position") if hook in case.cls.hooks]


def serving(case: Case) -> list[Case]:
    """Return one position that turns, for an attention that takes one: what most rows run with."""
    takes = case.cls.declares.can | case.cls.declares.ignores
    return hooked("rotate")[:1] if "rotate" in takes else []


def composes(attention: Case, chosen: Case) -> bool:
    """Say whether an attention takes a position's every hook, or does not mind it."""
    return not (chosen.cls.hooks & set(attention.cls.declares.lacks))


def pairs() -> list[tuple[Case, Case, bool]]:
    """Return each attention with each case of position that it takes, both ways."""
    return [
        (case, chosen, causal)
        for case, causal in directed(bases("attention"))
        for chosen in cases("position")
        if composes(case, chosen)
    ]


def is_mechanism(case: Case) -> bool:
    """Say whether an attention is the inner part of multi-head attention."""
    return issubclass(case.cls, Mechanism)


# -- comparing --------------------------------------------------------------------------------------------------------


def error(got: Tensor, want: Tensor) -> float:
    """Return the largest difference relative to the wanted values' largest magnitude; NaN counts as infinite."""
    assert got.shape == want.shape, f"{tuple(got.shape)} is not {tuple(want.shape)}"
    if want.numel() == 0:
        return 0.0
    got, want = got.detach().double(), want.detach().double()
    most = (got - want).abs().max() / want.abs().max().clamp(min=1e-30)
    return float("inf") if most.isnan() else float(most)


def close(got: Tensor, want: Tensor, dtype: torch.dtype = torch.float64, what: str = "") -> None:
    """Assert that two tensors agree to the tolerance of a dtype."""
    found = error(got, want)
    assert found <= TOLERANCE[dtype], f"{what} differs by {found:.2e}, relative; allowed is {TOLERANCE[dtype]:.0e}"


def gradients(y: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a fixed random projection of y; 0 where it does not depend on one."""
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True, materialize_grads=True)


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
        for cut in sorted(torch.randint(1, length, (row + 1,)).tolist()):
            doc[row, cut:] += 3
    return doc - 1


def padded(x: Tensor, side: str, lengths: Sequence[int], extra: int = 5) -> tuple[Tensor, Tensor]:
    """Spread the first `lengths[b]` tokens of each row over `extra` more columns: (B, T + extra, C) and its mask."""
    batch, length = x.shape[:2]
    columns = length + extra
    wide, mask = torch.randn(batch, columns, x.shape[2], dtype=x.dtype), torch.zeros(batch, columns, dtype=torch.int64)
    for row, count in enumerate(lengths):
        places = {
            "left": torch.arange(columns - count, columns),
            "right": torch.arange(count),
            "inner": torch.randperm(columns)[:count].sort().values,
        }[side]
        wide[row, places], mask[row, places] = x[row, :count], 1
    return wide, mask
