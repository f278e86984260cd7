"""The contract of attention: mechanisms replace its inner part, mixers replace it all; both declare what they can."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import PluginError
from .component import Component, Site
from .context import Context
from .projected import Projected
from .state import Declared, Memories
from .sublayer import Sublayer
from .tokens import Tokens, visible

ABILITIES = {
    "causal": "run where tokens may not see later ones",
    "two_sided": "run where tokens see both sides",
    "cross": "read keys and values from a memory",
    "documents": "keep packed documents apart",
    "rotate": "turn queries and keys by their positions",
    "score": "take a bias on the scores",
    "compile": "run under torch.compile without a break",
    "pairs": "let any queries see any keys, by a rule that is not of columns",
}
LATER = {"pairs"}
"""Abilities that a declaration may leave out: those who wrote it knew nothing of them, and nothing asks for them."""
UNSAID = "its package does not say whether it can"


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """Declare what an attention can do; every ability stands in exactly one of the first three, a `LATER` one or none.

    `can`: done and proven. `ignores`: harmless, of no effect (a recurrence knows order without a rotation).
    `lacks`: ability -> the reason, as a clause that follows "because". A combination that needs it is refused with it.
    `time`, `memory`: the exponents of its cost against length, for FLOPs and for peak bytes of a training pass.
    """

    can: frozenset[str]
    ignores: frozenset[str] = frozenset()
    lacks: Mapping[str, str] = field(default_factory=dict)
    time: float = 1.0
    memory: float = 1.0

    def __post_init__(self) -> None:
        said = [*self.can, *self.ignores, *self.lacks]
        for ability in LATER.difference(said):
            object.__setattr__(self, "lacks", {**self.lacks, ability: UNSAID})
            said.append(ability)
        if sorted(said) != sorted(ABILITIES):
            wrong = sorted(set(said) ^ set(ABILITIES)) or sorted({a for a in said if said.count(a) > 1})
            raise PluginError(f"a declaration names each of {', '.join(ABILITIES)} once; not so: {', '.join(wrong)}")


class Headed(ABC):
    """Stand at the root of the options of attentions whose heads positions serve."""

    @abstractmethod
    def heads(self, d_model: int) -> tuple[int, int]:
        """Return how many heads there are, and the width of what positions turn of each query and key.

        Raises:
            ValueError: the heads do not fit `d_model`.
        """


_Headed = Headed  # under another name: a class below takes this one for its own attribute


class Attention(Component, ABC):
    """Mix tokens: the kind of `Mechanism` and of `Mixer`.

    `chooses`: what it looks at by content, not by positions alone, a few words: it calls `Context.choose` then, and
    `visible` is what there is to choose from. Empty where positions say it all.
    """

    kind: ClassVar[str] = "attention"
    declares: ClassVar[Declaration]
    chooses: ClassVar[str] = ""

    @abstractmethod
    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return whose values reach whom, (B or 1, T, S) bool: the declared receptive field of one layer."""

    def shown(self, q: Tokens, k: Tokens, chosen: Tensor) -> Tensor:
        """Return whose values reach whom where `chosen` (B, T, ..., N) is chosen, (B or 1, T, S) bool."""
        return self.visible(q, k)

    def growth(self) -> tuple[float, float]:
        """Return the exponents of time and memory against length, as declared; options may raise them."""
        return self.declares.time, self.declares.memory

    def path(self, tokens: int) -> str:
        """Name the path that `forward` takes for `tokens` plain tokens without a state, as `show` prints it."""
        return "reference"

    def on_cuda(self) -> str:
        """Say what `forward` takes on CUDA in half precision where that is another path, or why no faster one."""
        return ""

    def in_one_graph(self) -> bool:
        """Say whether torch.compile can take all of `forward` here; a kernel that it can't look into breaks a graph."""
        return "compile" not in self.declares.lacks


class Mixer(Attention, Sublayer, ABC):
    """Own everything from (B, T, C) to (B, T, C): recurrences, convolutions, latent attention.

    A `Config` that is a `Mixer.Headed` too says what heads there are for positions to serve.
    """

    Headed: TypeAlias = _Headed

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()
        self.config = config
        self.site = site

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return whose values reach whom: all that the model's own rule allows."""
        return visible(q, k, causal=self.site.causal)

    @abstractmethod
    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute `forward` of x (B, T, C) from the definition: slow, obviously right, exportable."""


class Mechanism(nn.Module, Attention, ABC):
    """Replace the inner part of multi-head attention: from q, k, v to the mixed values.

    The shared shell (`MultiHeadAttention`) owns projections, grouped heads, norms of q and k, and the output. Its
    `Config` is the base of every mechanism's; `n_heads`, `n_kv_heads`, `head_dim` and `scale` are its resolved numbers.
    `turns`: where queries and keys are turned by their positions, `before` they come or by the mechanism `itself`, with
    `context.rotate` (after a feature map, say). `sets`: what the sets of queries, keys and values are called that it
    takes, behind the letter; q, k and v come with the heads of one set after those of another. `packs`: the targets of
    `lowers` for which it offers `packed` too, which the shell then calls in a graph of steps.
    """

    turns: ClassVar[Literal["before", "itself"]] = "before"
    sets: ClassVar[tuple[str, ...]] = ("",)
    packs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()
        self.config = config
        self.site = site
        self.n_heads: int = config.n_heads
        self.n_kv_heads: int = config.n_kv_heads
        self.head_dim: int = config.head_dim
        width = config.head_dim if config.query_scalar is None else config.query_scalar
        power: float = (width * config.terms) ** -0.5
        scale: float = power if config.scale is None else config.scale
        self.scale: float = scale / site.layer if config.depth_scale else scale

    @classmethod
    def build(cls, config: Any, *where: Any) -> Sublayer:
        """Build the mechanism inside its shell, for the site that `where` is."""
        from .heads import MultiHeadAttention  # the shell is built of contracts, this one among them

        return MultiHeadAttention(cls, config, *where)

    def declared(self) -> Declared:
        """Declare the state, as `Sublayer.declared` does."""
        return {}

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return who may see whom, (B or 1, T, S) bool: the model's rule, and the mechanism's own where it has one."""
        return visible(q, k, causal=self.site.causal)

    @abstractmethod
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix the values of the tokens themselves by the fastest path for this device, shape and context.

        q (B, T, H, D) and k, v (B, T, K, D); q and k are turned by the positions that rotate, or not yet where the
        class says `turns = "itself"`. k and v are 0 at padding. Returns (B, T, H, D) and the next state.
        """

    @abstractmethod
    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute `forward` from the definition: dense, slow, obviously right, exportable.

        Where `site.cross`, k and v (B, M, K, D) stand at `context.memory_tokens` and there is no state.
        """

    def packed(self, projected: Projected, context: Context, state: Memories) -> tuple[Tensor, Memories]:
        """Compute `forward` in a graph, of what the projections give; returns (B, T, H, D) and the state after.

        For a state in slots. k and v are not 0 at padding here. What is written to slots behind a row's last token is
        of no consequence.
        """
        raise NotImplementedError(f"{type(self).__name__} offers no packed form")

    def prime(self, k: Tensor, v: Tensor, context: Context) -> Memories:
        """Return what to keep of a memory's keys and values (B, M, K, D): the state declared `static`."""
        raise NotImplementedError(f"{type(self).__name__} does not declare 'cross'")

    def recall(self, q: Tensor, primed: Memories, context: Context) -> Tensor:
        """Mix the values of a memory for q (B, T, H, D), from what `prime` kept."""
        raise NotImplementedError(f"{type(self).__name__} does not declare 'cross'")


def is_exporting() -> bool:
    """Say whether a graph is being exported: lengths are symbols then, and no path may depend on them."""
    return torch.compiler.is_exporting()
