"""The shell of multi-head attention: everything that mechanisms share around the inner part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from .attention import Declaration, Headed, Mechanism, is_exporting
from .component import Part, Site
from .context import Context
from .inputs import Input
from .linear import Fused, Linear
from .moves import Concat, Heads, Layouts, Move, Order, Reshape, Take, Transpose, conv1d
from .position import Served
from .projected import Projected
from .state import Declared, Memories
from .sublayer import Sublayer
from .tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(Headed):
    """Set what every mechanism's shell takes.

    n_heads: query heads. n_kv_heads: key heads, each shared by a group of query heads (all, when left out). head_dim:
    width of a head (d_model / n_heads). bias: on the projections, or on which of them. scale: of the scores
    (head_dim^-1/2). query_scalar: what the scale is the -1/2 power of, instead of head_dim. terms: of how many products
    like that of q and k a score is the sum: the -1/2 power of that scales it too (He et al. 2021). depth_scale: whether
    the scale is divided by the place of the layer in its stack, from 1 (Karamcheti et al. 2021). qk_norm: a norm on
    each head's q and k. gate: multiply the output by a sigmoid of the input; `joint`: by one that the projection of q
    makes, biased as q is (Qiu et al. 2025).
    """

    n_heads: int
    n_kv_heads: int | None = None
    head_dim: int | None = None
    bias: bool | tuple[Literal["q", "k", "v", "out"], ...] = False
    scale: float | None = None
    query_scalar: float | None = None
    terms: int = 1
    depth_scale: bool = False
    qk_norm: Annotated[Part | None, "norm"] = None
    gate: bool | Literal["joint"] = False

    def __post_init__(self) -> None:
        if self.n_heads < 1:
            raise ValueError(f"n_heads: {self.n_heads} is not a number of heads; at least 1")
        if self.n_kv_heads is not None and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            raise ValueError(f"n_kv_heads: {self.n_kv_heads} key heads do not divide {self.n_heads} query heads evenly")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim: {self.head_dim} is not a width; at least 1")
        if self.query_scalar is not None and (self.scale is not None or self.query_scalar <= 0.0):
            raise ValueError(f"query_scalar: {self.query_scalar} must be above 0, and stand alone or leave scale out")
        if self.terms < 1 or (self.terms > 1 and self.scale is not None):
            raise ValueError(f"terms: {self.terms} must be at least 1, and leave scale out where it is more")

    def biased(self, *parts: str) -> list[bool]:
        """Say which of some projections have a bias."""
        return [self.bias if isinstance(self.bias, bool) else part in self.bias for part in parts]

    def heads(self, d_model: int) -> tuple[int, int]:
        """Return the number and the width of the query heads: positions turn them whole."""
        config = self.resolved(d_model)
        assert config.head_dim is not None
        return config.n_heads, config.head_dim

    def resolved(self, d_model: int) -> HeadsConfig:
        """Return these options with every number filled in for a model of width `d_model`."""
        if self.head_dim is None and d_model % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} heads do not divide d_model {d_model}; set head_dim, or n_heads")
        return replace(
            self, head_dim=self.head_dim or d_model // self.n_heads, n_kv_heads=self.n_kv_heads or self.n_heads
        )


class MultiHeadAttention(Sublayer):
    """Project to heads, let a mechanism mix them, and project back (Vaswani et al. 2017; key groups: Ainslie 2023)."""

    kind: ClassVar[str] = "attention"
    lowers: ClassVar[Mapping[str, str]] = {"ort": "packed", "onnx": "packed"}

    def __init__(self, mechanism: type[Mechanism], config: HeadsConfig, site: Site) -> None:
        super().__init__()
        config = config.resolved(site.d_model)
        assert config.head_dim is not None
        assert config.n_kv_heads is not None
        self.site = site
        self.sets = mechanism.sets
        self.heads = (len(self.sets) * config.n_heads, config.head_dim)
        self.kv_heads = (len(self.sets) * config.n_kv_heads, config.head_dim)
        width, kv_width = self.heads[0] * config.head_dim, self.kv_heads[0] * config.head_dim
        # One product for q, k and v costs less to dispatch than three; across a memory, q stands alone.
        self.shares = (self.heads[0], self.kv_heads[0], self.kv_heads[0])
        self.together = sum(self.shares)
        self.joint = config.gate == "joint"
        if self.joint and len(self.sets) > 1:
            raise ValueError(
                f"gate: {mechanism.name} has {len(self.sets)} projections of queries, and joint goes with one"
            )
        gates = ["q"] if self.joint else []  # as wide as the queries, and behind all else
        if site.cross:
            self.q = Fused(site.d_model, (width,) * (1 + len(gates)), config.biased("q", *gates))
            self.kv = Fused(site.d_model, (kv_width, kv_width), config.biased("k", "v"))
        else:
            sizes = (width, kv_width, kv_width, *(width for _ in gates))
            self.qkv = Fused(site.d_model, sizes, config.biased("q", "k", "v", *gates))
        mixed = config.n_heads * config.head_dim
        self.out = Linear(mixed, site.d_model, bias=all(config.biased("out")), gain=(2 * site.n_layers) ** -0.5)
        head_site = site.but(d_model=config.head_dim)
        self.q_norm = config.qk_norm.build(head_site) if config.qk_norm else None
        self.k_norm = config.qk_norm.build(head_site) if config.qk_norm else None
        self.gate = Linear(site.d_model, mixed) if config.gate is True else None
        self.mechanism = mechanism(config, site)
        self.turns = mechanism.turns == "before" and "rotate" in mechanism.declares.can

    @property
    def declares(self) -> Declaration:
        """Return what the mechanism declares."""
        return self.mechanism.declares

    def declared(self) -> Declared:
        """Declare the mechanism's state."""
        return self.mechanism.declared()

    def reads(self) -> Mapping[str, Input]:
        """Declare the mechanism's raw inputs."""
        return self.mechanism.reads()

    def visible(self, q: Tokens, k: Tokens) -> Tensor:
        """Return the mechanism's receptive field."""
        return self.mechanism.visible(q, k)

    def shown(self, q: Tokens, k: Tokens, chosen: Tensor) -> Tensor:
        """Return the mechanism's receptive field, (B or 1, T, S), where `chosen` (B, T, ..., N) is chosen."""
        return self.mechanism.shown(q, k, chosen)

    def growth(self) -> tuple[float, float]:
        """Return the mechanism's exponents of time and memory."""
        return self.mechanism.growth()

    def layouts(self) -> Layouts:
        """Publish q, k and v apart or fused; the mechanism's own entries are laid over these.

        `separate`: q_proj, k_proj, v_proj, o_proj, with the name of a set behind the letter. Of self-attention also
        `fused`: [Q|K|V] in qkv, o_proj; `conv1d`: the same, transposed, in c_attn, c_proj; `per_head`: query_key_value
        of each group of heads in turn, dense; `by_head`: the separate ones as (C, H, D), the output too. A joint gate
        stands in q_proj, where each head's rows of it follow those of q, and there are no other layouts then.
        What belongs to the mechanism alone has the name there that it has in the mechanism.
        """
        inner = set(self.mechanism.state_dict())
        own: dict[str, Move] = {f"mechanism.{name}": Take(name) for name in inner}
        found = {name: own | moves for name, moves in self._published("weight").items()}
        biases = self._biases()
        found = {name: found[name] | moves for name, moves in biases.items()} if biases else found
        for layout, entries in self.mechanism.layouts().items():
            moves = {f"mechanism.{name}" if name in inner else name: move for name, move in entries.items()}
            found[layout] = found.get(layout, found["separate"]) | moves
        return found

    def _published(self, kind: str) -> dict[str, dict[str, Move]]:
        """Return the layouts of the projections' weights, or of their biases: `kind` says which."""
        rows, kv_rows = self.heads[0] * self.heads[1], self.kv_heads[0] * self.kv_heads[1]
        out = Take(f"o_proj.{kind}")
        if self.site.cross:
            return {
                "separate": {
                    f"q.{kind}": self._apart(kind, "q"), f"kv.{kind}": self._apart(kind, "kv"), f"out.{kind}": out
                }
            }  # fmt: skip
        if self.joint:
            return {"separate": {f"qkv.{kind}": self._apart(kind, "qkv"), f"out.{kind}": out}}
        apart = [
            _by_head(f"{name}_proj.{kind}", self.site.d_model, heads)
            for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
        ]
        mixed = self.out.in_features
        whole = (self.site.d_model, mixed // self.heads[1], self.heads[1])
        group = (rows // self.kv_heads[0], self.kv_heads[1], self.kv_heads[1])
        pairs: dict[str, tuple[Move, Move]] = {
            "separate": (self._apart(kind, "qkv"), out),
            "fused": (Take(f"qkv.{kind}"), out),
            "conv1d": (conv1d(f"c_attn.{kind}"), conv1d(f"c_proj.{kind}")),
            "by_head": (
                Concat(tuple(apart), (rows, kv_rows, kv_rows)),
                Reshape(out, whole, (self.site.d_model, mixed)) if kind == "weight" else out,
            ),
            "per_head": (Heads(Take(f"query_key_value.{kind}"), self.kv_heads[0], group), Take(f"dense.{kind}")),
        }
        return {layout: {f"qkv.{kind}": qkv, f"out.{kind}": back} for layout, (qkv, back) in pairs.items()}

    def _apart(self, kind: str, parts: str) -> Move:
        """Return how the weights or biases of some of q, k and v are made of q_proj, k_proj and v_proj."""
        rows, kv_rows = self.heads[0] * self.heads[1], self.kv_heads[0] * self.kv_heads[1]
        sizes = [rows if name == "q" else kv_rows for name in parts]
        takes = [self._part(name, kind, size) for name, size in zip(parts, sizes, strict=True)]
        gated = self.joint and "q" in parts
        if gated:
            takes[0], sizes[0] = Heads(takes[0], self.heads[0], (self.heads[1], self.heads[1])), 2 * rows
        move = takes[0] if len(takes) == 1 else Concat(tuple(takes), tuple(sizes))
        return Order(move, (rows, rows, sum(sizes[1:])), (0, 2, 1)) if gated and sizes[1:] else move

    def _part(self, name: str, kind: str, size: int) -> Move:
        """Return queries, keys or values as they are published, `size` rows of all sets."""
        takes = tuple(Take(f"{name}{of}_proj.{kind}") for of in self.sets)
        return takes[0] if len(takes) == 1 else Concat(takes, (size // len(takes),) * len(takes))

    def _biases(self) -> dict[str, dict[str, Move]]:
        """Return the layouts of the biases that there are; where only some projections have one, they stand apart."""
        fused = {"q": self.q, "kv": self.kv} if self.site.cross else {"qkv": self.qkv}
        if self.out.bias is not None and all(all(has for _, has in part.parts) for part in fused.values()):
            return self._published("bias")
        moves: dict[str, Move] = {} if self.out.bias is None else {"out.bias": Take("o_proj.bias")}
        for parts, each in fused.items():
            there = [name for name, (_, has) in zip(parts, each.parts, strict=False) if has]  # a gate is as q is
            if there:
                moves[f"{parts}.bias"] = self._apart("bias", "".join(there))
        return {"separate": moves} if moves else {}

    def prime(self, context: Context) -> Memories:
        """Return what the mechanism keeps of `context.memory`, for all steps to come."""
        if not self.site.cross:
            return {}
        return self.mechanism.prime(*self._from_memory(context), context)

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Attend from x (B, T, C) to itself, or to the memory where the site says `cross`."""
        if self.site.cross:
            q, gate = self._queries(x)
            primed = self.prime(context) if state is None else state
            return self._merge(x, self.mechanism.recall(q, primed, context), gate), state
        if context.projects:
            context = context.serving(self)
        qkv, gate = torch.unflatten(self.qkv(x), -1, (-1, self.heads[1])), None
        if self.joint:
            qkv, gate = self._split(qkv, self.together)
        mixed, state = self.mechanism(*self._from_self(qkv, context), context, state)
        return self._merge(x, mixed, gate), state

    def declines(self, target: str) -> str:
        """Keep to `forward` where the mechanism wants q, k and v one by one."""
        if target not in self.mechanism.packs:
            return "its mechanism takes q, k and v apart"
        return self.mechanism.declines(target)

    def packed(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute `forward` by the mechanism's `packed`, to a state in slots in a graph."""
        if state is None or context.slots is None or not is_exporting():
            return MultiHeadAttention.forward(self, x, context, state)
        context = context.serving(self)
        qkv, gate = self._split(torch.unflatten(self.qkv(x), -1, (-1, self.heads[1])), self.together)
        parts: tuple[Tensor, ...] = (qkv,)
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.split_with_sizes(self.shares, -2)
            parts = self.q_norm(q), self.k_norm(k), v
        mixed, after = self.mechanism.packed(Projected(parts, self.shares, self.turns), context, state)
        return self._merge(x, mixed, gate), after

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute `forward` with the mechanism's reference; across a memory, from the memory itself."""
        if self.site.cross:
            q, gate = self._queries(x)
            return self._merge(x, self.mechanism.reference(q, *self._from_memory(context), context)[0], gate), state
        context = context.serving(self)
        qkv, gate = self._split(torch.unflatten(self.qkv(x), -1, (-1, self.heads[1])), self.together)
        mixed, state = self.mechanism.reference(*self._from_self(qkv, context), context, state)
        return self._merge(x, mixed, gate), state

    @property
    def scale(self) -> float:
        """Return what the mechanism multiplies products of queries and keys by."""
        return self.mechanism.scale

    def queries(self, x: Tensor) -> Tensor:
        """Return vectors x (..., C) as queries of self-attention (..., H, D), not turned."""
        q: Tensor = self.qkv.alone(0, x).unflatten(-1, self.heads)
        return q if self.q_norm is None else self.q_norm(q)

    def keys(self, x: Tensor) -> Tensor:
        """Return vectors x (..., C) as keys of self-attention (..., K, D), not turned."""
        k: Tensor = self.qkv.alone(1, x).unflatten(-1, self.kv_heads)
        return k if self.k_norm is None else self.k_norm(k)

    def of(self, place: int) -> Served:
        """Return this attention by one of its sets of projections."""
        return _Part(self, place)

    def _split(self, projected: Tensor, heads: int) -> tuple[Tensor, Tensor | None]:
        """Return the first of projected heads (B, T, ..., D), and the joint gate behind them, where there is one."""
        if not self.joint:
            return projected, None
        first, gate = projected.split_with_sizes((heads, self.heads[0]), -2)
        return first, gate.flatten(-2)

    def _from_self(self, qkv: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.split_with_sizes(self.shares, -2)
            q, k = self.q_norm(q), self.k_norm(k)
            if self.turns:
                q, k = context.rotate(q), context.rotate(k)
        elif self.turns:
            # Queries and keys stand side by side: one rotation turns both.
            qk, v = qkv.split_with_sizes((self.shares[0] + self.shares[1], self.shares[2]), -2)
            q, k = context.rotate(qk).split_with_sizes(self.shares[:2], -2)
        else:
            q, k, v = qkv.split_with_sizes(self.shares, -2)
        tokens = context.tokens
        if context.asked:
            k, v, tokens = k[:, : -context.asked], v[:, : -context.asked], context.own
        valid = tokens.valid
        return (q, k, v) if valid is None else (q, *_silence(k, v, valid))

    def _queries(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        q, gate = self._split(torch.unflatten(self.q(x), -1, (-1, self.heads[1])), self.heads[0])
        return q if self.q_norm is None else self.q_norm(q), gate

    def _from_memory(self, context: Context) -> tuple[Tensor, Tensor]:
        assert context.memory is not None
        assert context.memory_tokens is not None
        k, v = self.kv(context.memory).unflatten(-1, (-1, self.heads[1])).chunk(2, dim=-2)
        if self.k_norm is not None:
            k = self.k_norm(k)
        valid = context.memory_tokens.valid
        return (k, v) if valid is None else _silence(k, v, valid)

    def _merge(self, x: Tensor, mixed: Tensor, gate: Tensor | None) -> Tensor:
        mixed = mixed.flatten(-2)
        if self.gate is not None:
            gate = self.gate(x)
        if gate is not None:
            mixed = mixed * torch.sigmoid(gate)
        y: Tensor = self.out(mixed)
        return y


class _Part:
    """Serve positions with one set of projections, of those that a shell has side by side."""

    def __init__(self, shell: MultiHeadAttention, place: int) -> None:
        self.shell = shell
        self.place = place
        self.site = shell.site

    @property
    def scale(self) -> float:
        """Return what the mechanism multiplies products of queries and keys by."""
        return self.shell.scale

    def queries(self, x: Tensor) -> Tensor:
        """Return vectors x (..., C) as queries of the set (..., H, D), not turned."""
        return self.shell.queries(x).chunk(len(self.shell.sets), -2)[self.place]

    def keys(self, x: Tensor) -> Tensor:
        """Return vectors x (..., C) as keys of the set (..., K, D), not turned."""
        return self.shell.keys(x).chunk(len(self.shell.sets), -2)[self.place]

    def of(self, place: int) -> Served:
        """Return the attention by another set."""
        return _Part(self.shell, place)


def _by_head(name: str, width: int, heads: tuple[int, int]) -> Move:
    """Take a projection's weight that is published as (C, H, D), or its bias, as (H, D)."""
    rows = heads[0] * heads[1]
    if name.endswith("bias"):
        return Reshape(Take(name), heads, (rows,))
    return Transpose(Reshape(Take(name), (width, *heads), (width, rows)))


def _silence(k: Tensor, v: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Set keys and values at padding to 0, so that sums over all columns are sums over real tokens."""
    padding = ~valid[:, :, None, None]
    return k.masked_fill(padding, 0.0), v.masked_fill(padding, 0.0)
