"""Turns a spec into a model: checked first, built on the meta device, then filled from its seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch

from ..core.attention import Headed
from ..core.block import Block
from ..core.component import Part, Site
from ..core.data import Data
from ..core.embedding import Borrowed, Embedding
from ..core.head import Head
from ..core.initialise import materialise, unallocated
from ..core.norm import Norm
from ..core.objective import Objective
from ..core.placement import Stream, norm_names
from ..core.position import Position
from ..core.stack import Stack
from ..core.sublayer import Sublayer
from ..core.topology import StackRole, Topology
from ..core.vocabulary import Vocabulary
from ..errors import SpecError
from .check import check
from .limits import check_memory, check_parameters, countable
from .marks import BrokenSpec
from .spec import Spec
from .typed import LayerSpec, StackSpec

Built = TypeVar("Built")


def compose(spec: Spec, device: torch.device | str = "cpu", *, drawn: bool = True) -> Topology:
    """Build the model that a spec describes, its first weights drawn from `train.seed`; "meta" allocates nothing.

    `drawn`: False for whoever loads a whole `state_dict` next: what that holds may be anything until then.

    Raises:
        SpecError: parts that do not compose, or an option that does not fit the sizes around it, each at its place;
            more parameters than a spec may make, or than the device holds.
    """
    check(spec)
    with unallocated():
        model = _Builder(spec).model()
    model.spec = spec
    check_parameters(spec, sum(p.numel() for p in model.parameters()))
    if torch.device(device).type != "meta":
        weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        for place in {"cpu", str(device)}:  # first weights are drawn on CPU
            check_memory(spec, "model", weights, "a model of these weights", place)
        materialise(model, device, spec.train.seed, drawn=drawn)
    return model


def outline(spec: Spec) -> Topology:
    """Build, on the meta device, the model that a spec describes without the layers that repeat earlier ones.

    Of equal layers two are kept (see `stand_ins`): the first may make what the others share. Raise as `compose` does.
    """
    check(spec)
    with unallocated():
        return _Outliner(spec).model()


def stand_ins(layers: Sequence[LayerSpec]) -> list[int]:
    """Return for each layer the one that an outline builds for it: itself, or the second of those equal to it."""
    kinds: list[tuple[LayerSpec, list[int]]] = []
    found = []
    for index, layer in enumerate(layers):
        equal = next((places for other, places in kinds if other is layer or other == layer), None)
        if equal is None:
            kinds.append((layer, equal := []))
        if len(equal) < 2:
            equal.append(index)
        found.append(equal[-1])
    return found


def build_objective(spec: Spec, vocabulary: Vocabulary | None) -> Objective:
    """Build a spec's objective for data with these token ids.

    Raises:
        SpecError: the spec names no objective.
    """
    if spec.objective is None:
        raise SpecError(f"{spec.where('objective')}: objective: is missing; training and evaluation need one")
    return cast(Objective, spec.objective.build(vocabulary))


def build_data(spec: Spec) -> Data:
    """Build a spec's source of examples.

    Raises:
        SpecError: the spec names no data.
    """
    if spec.data is None:
        raise SpecError(f"{spec.where('data')}: data: is missing; training and evaluation need some")
    return cast(Data, spec.data.build())


class _Builder:
    """Build the parts of one spec from the inside out, each told its place when it refuses."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def model(self) -> Topology:
        """Build stacks, then heads, then what wires them."""
        model = self.spec.model
        roles: Mapping[str, StackRole] = model.topology.cls.stacks
        lenders = model.topology.cls.lenders(model.topology.config)
        stacks: dict[str, Stack] = {}
        for name in sorted(roles, key=lambda name: name in lenders):  # those that lend before those that borrow
            lender = stacks[lenders[name]].embedding if name in lenders else None
            stacks[name] = self.stack(name, model.stacks[name], roles[name], lender)
        stacks = {name: stacks[name] for name in roles}
        readers = model.topology.cls.readers(model.topology.config)
        heads: dict[str, Head] = {}
        for name, part in model.heads.items():
            read = stacks[readers.get(name, list(stacks)[-1])]
            embedding = read.embedding.module if isinstance(read.embedding, Borrowed) else read.embedding
            site = Site(d_model=read.site.d_model, max_seq_len=model.max_seq_len)
            heads[name] = self.at(f"model.heads.{name}", part.build, site, embedding)
        return cast(Topology, self.at("model.topology", model.topology.build, stacks, heads))

    def stack(self, name: str, stack: StackSpec, role: StackRole, lender: Embedding | Borrowed | None) -> Stack:
        """Build one stack; its embedding is the lender's where there is one."""
        path, model = f"model.stacks.{name}", self.spec.model
        width = model.topology.cls.widths(model.topology.config).get(name, model.d_model)
        site = Site(d_model=width, max_seq_len=model.max_seq_len, causal=role.causal, n_layers=len(stack.layers))
        assert stack.embedding is not None
        part = stack.embedding
        embedding = self.at(f"{path}.embedding", part.build if lender is None else lender.lend, site)
        # Blocks first: an attention whose heads do not fit is refused at its own place, not at that of its positions.
        blocks = [
            self.block(f"{path}.layers.{i}", stack.layers[i], site.but(layer=i + 1), stack.halvings(i))
            for i in self.built(stack.layers)
        ]
        served = [layer.attention for layer in stack.layers if layer.position is None]
        positions = self.positions(f"{path}.position", stack.position, served, site, embedding.width)
        norm = None if stack.norm is None else self.at(f"{path}.norm", stack.norm.build, site)
        return self.at(path, Stack, site, embedding, positions, blocks, norm)

    def built(self, layers: Sequence[LayerSpec]) -> Sequence[int]:
        """Return which layers of a stack are built: all."""
        return range(len(layers))

    def block(self, path: str, layer: LayerSpec, site: Site, halvings: tuple[int, int]) -> Block:
        """Build one block: its sublayers, a norm for each, and the positions of its own.

        `halvings`: how often the vectors are halved before it and before the next, as `Block` takes it.
        """
        sublayers: dict[str, Sublayer] = {}
        for name, part, where in (
            ("attention", layer.attention, site),
            ("cross_attention", layer.cross_attention, site.but(cross=True, causal=False)),
            ("feedforward", layer.feedforward, site),
            ("beside", layer.beside, site),
        ):
            if part is not None:
                sublayers[name] = self.at(f"{path}.{name}", part.build, where)
        norms: dict[str, Norm] = {}
        if layer.norm is not None:
            norm = layer.norm
            for name in norm_names(layer.placement, list(sublayers)):
                if name in layer.unnormed:
                    continue
                norms[name] = self.at(f"{path}.norm", norm.build, site)
        positions = None
        if layer.position is not None:
            served, alone = [layer.attention], site.but(n_layers=1)
            positions = self.positions(f"{path}.position", layer.position, served, alone, site.d_model)
        wide = layer.residual_dtype == "fp32"
        stream = Stream(residual=layer.residual, dropout=layer.dropout, halvings=halvings, wide=wide)
        return Block(sublayers, norms, placement=layer.placement, stream=stream, positions=positions)

    def positions(
        self, path: str, parts: Sequence[Part], served: Sequence[Part | None], site: Site, width: int
    ) -> list[Position]:
        """Build the encodings that serve some attentions, of whose heads they must know the number and the width.

        `width`: of the vectors that they are added to. Where no attention has heads, what turns or scores them has
        nothing to do and is left out.
        """
        heads = {
            self.at(path, config.heads, site.d_model)
            for config in (part.config for part in served if part is not None)
            if isinstance(config, Headed)
        }
        built = []
        for part in parts:
            if not heads and "add" not in part.cls.hooks:
                continue
            if len(heads) > 1 and "add" not in part.cls.hooks:
                sizes = ", ".join(f"{n} heads of {d}" for n, d in sorted(heads))
                raise self.error(
                    path,
                    f"position '{part.name}' serves layers whose heads differ ({sizes}); give those layers a position "
                    "of their own",
                )
            n_heads, head_dim = next(iter(heads), (1, site.d_model))
            wide = width if "add" in part.cls.hooks else site.d_model
            where = site.but(d_model=wide, n_heads=n_heads, head_dim=head_dim)
            built.append(self.at(path, part.build, where))
        return built

    def at(self, path: str, build: Callable[..., Built], *args: Any) -> Built:
        """Run a component's constructor; what it says of an option becomes an error at that option's place."""
        try:
            with countable(self.spec, path):
                return build(*args)
        except ValueError as error:
            field, colon, message = str(error).partition(": ")
            if colon and field.isidentifier():
                raise self.error(f"{path}.{field}", message) from error
            raise self.error(path, str(error)) from error

    def error(self, path: str, message: str) -> SpecError:
        """Return a located error."""
        return BrokenSpec([self.spec.problem(path, message)])


class _Outliner(_Builder):
    """Build the first two layers of each kind, so that neither time nor memory grows with depth."""

    def built(self, layers: Sequence[LayerSpec]) -> Sequence[int]:
        """Return which layers of a stack are built."""
        return sorted(set(stand_ins(layers)))
