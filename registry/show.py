"""Says what a spec makes: the model as a tree, and what it costs to run, to train and to remember."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from ..core.attention import Attention
from ..core.block import Block
from ..core.component import Part
from ..core.embedding import Borrowed
from ..core.head import Head
from ..core.norm import Norm
from ..core.position import Position
from ..core.stack import Stack
from ..core.topology import Topology
from .compose import outline, stand_ins
from .estimate import Estimate, estimate, parameters_of
from .figures import amounts
from .limits import check_batch, check_parameters
from .spec import Spec
from .typed import LayerSpec, StackSpec

HOOKS = {"add": "added to embeddings", "rotate": "turns queries and keys", "score": "added to scores"}
MOST_RANGES = 4


@dataclass(frozen=True)
class Branch:
    """Stand for a part of a model: what it is, its options and figures, and what it consists of."""

    label: str
    detail: str = ""
    children: tuple[Branch, ...] = ()


@dataclass(frozen=True)
class Description:
    """Say what a spec makes: its parts, its figures, and these as lines together with what else must be said."""

    tree: Branch
    estimate: Estimate
    notes: tuple[str, ...]


def describe(spec: Spec, processes: int = 1) -> Description:
    """Describe the model of a spec; neither its weights nor layers that repeat others are built.

    processes: that would train it; figures are those of one.

    Raises:
        SpecError: as `compose` does, or a batch larger than a spec may ask for, or that they can't share evenly.
    """
    check_batch(spec)
    model = outline(spec)
    found = estimate(spec, model, processes)
    check_parameters(spec, found.parameters)
    return Description(_Tree(spec, model, found).model(), found, (*amounts(spec, found), *found.notes, *spec.dropped))


class _Tree:
    """Write down the parts of one outlined model."""

    def __init__(self, spec: Spec, model: Topology, found: Estimate) -> None:
        self.spec = spec.model
        self.name = spec.name
        self.outline = model
        self.found = found

    def model(self) -> Branch:
        """Return the whole model."""
        stacks = [self.stack(name, stack) for name, stack in self.spec.stacks.items()]
        heads = [self.head(name, part) for name, part in self.spec.heads.items()]
        detail = _join([f"d_model {self.spec.d_model}", f"max_seq_len {self.spec.max_seq_len}",
                        *_options(self.spec.topology), _count(self.found.parameters)])  # fmt: skip
        return Branch(f"{self.name}: {self.spec.topology.name}", detail, (*stacks, *heads))

    def stack(self, name: str, stack: StackSpec) -> Branch:
        """Return a stack: what it embeds, its positions, its layers by kind and its last norm."""
        built = cast(Stack, getattr(self.outline, name))
        children = []
        if stack.embedding is not None:
            borrowed = isinstance(built.embedding, Borrowed)
            shared = "the table of another stack" if borrowed else _size(cast(nn.Module, built.embedding))
            children.append(_branch("embedding", stack.embedding, shared))
        children += _positions(stack.position, cast(Sequence[Position], built.positions))
        places = stand_ins(stack.layers)
        index = {place: i for i, place in enumerate(sorted(set(places)))}
        for first, equal in _by_kind(stack.layers, places).items():
            children.append(self.layer(stack, stack.layers[first], equal, built.blocks[index[first]]))
        if stack.norm is not None:
            children.append(_branch("norm", stack.norm, _size(built.norm)))
        halved = f" · halved every {_plural(stack.halve_every, 'layer')}" if stack.halve_every > 0 else ""
        return Branch(f"stack {name}", _plural(len(stack.layers), "layer") + halved, tuple(children))

    def layer(self, stack: StackSpec, layer: LayerSpec, equal: Sequence[int], block: Block) -> Branch:
        """Return the layers that are equal to one."""
        positions = stack.position if layer.position is None else layer.position
        children: list[Branch] = []
        if layer.position is not None:
            children += _positions(layer.position, tuple(block.own_positions))
        if layer.norm is not None:
            norms = [module for module in block.children() if isinstance(module, Norm)]
            label = layer.norm.name if len(norms) == 1 else f"{layer.norm.name} ({len(norms)} x)"
            size = sum(map(parameters_of, norms))
            children.append(Branch(f"norm {label}", _join([*_options(layer.norm), _count(size) if size else ""])))
        for name, sublayer in block.sublayers().items():
            part = getattr(layer, name)
            about = self.attention(name, part, sublayer, positions) if part.cls.kind == "attention" else []
            children.append(_branch(name, part, _size(sublayer), *about))
        size = parameters_of(block)
        each = _count(size) if len(equal) == 1 else f"{len(equal)} x {size:,} = {_count(len(equal) * size)}"
        dropout = f"dropout {layer.dropout:g}" if layer.dropout else ""
        bare = f"no norm before {', '.join(layer.unnormed)}" if layer.unnormed else ""
        residual = "residual after the norm" if layer.residual == "after" else ""
        title = "layer" if len(equal) == 1 else "layers"
        times = "" if len(equal) == 1 else f" ({len(equal)} x)"
        detail = _join([layer.placement, residual, bare, dropout, each])
        return Branch(f"{title} {_ranges(equal)}{times}", detail, tuple(children))

    def attention(self, name: str, part: Part, sublayer: nn.Module, positions: Sequence[Part]) -> Iterator[str]:
        """Say which kernel an attention takes, why no faster one, and what it ignores."""
        inner = cast(Attention, getattr(sublayer, "mechanism", sublayer))
        yield f"kernel: {inner.path(self.found.tokens)}"
        if on_cuda := inner.on_cuda():
            yield f"on CUDA, in bf16 or fp16: {on_cuda}"
        if name != "attention":
            return
        for position in positions:
            if "score" in position.cls.hooks and "score" in part.cls.declares.can:
                yield f"with a mask, to which {position.name} adds"
        ignored = [p.name for p in positions if any(hook in part.cls.declares.ignores for hook in p.cls.hooks)]
        if ignored:
            yield f"ignores {', '.join(ignored)}"

    def head(self, name: str, part: Part) -> Branch:
        """Return a head."""
        built = cast(Head, self.outline.heads[name])
        size = parameters_of(built)
        tied = "tied to the embedding" if not size else _count(size)
        label = "head" if len(self.spec.heads) == 1 else f"head {name}:"
        return _branch(label, part, tied)


def _positions(parts: Sequence[Part], built: Sequence[Position]) -> Iterator[Branch]:
    """Yield the positions of a stack or a layer; those that serve no attention are not built."""
    left = list(built)
    for part in parts:
        does = ", ".join(HOOKS[hook] for hook in HOOKS if hook in part.cls.hooks)
        if left and isinstance(left[0], part.cls):
            yield _branch("position", part, does, _size(left.pop(0)))
        else:
            yield _branch("position", part, "of no effect: no attention here has heads")


def _by_kind(layers: Sequence[LayerSpec], places: Sequence[int]) -> dict[int, list[int]]:
    """Return the layers of each kind, by the first of them."""
    kinds: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        first = next((f for f in kinds if f == place or layers[f] == layers[place]), place)
        kinds.setdefault(first, []).append(index)
    return kinds


def _ranges(indices: Sequence[int]) -> str:
    """Return ascending indices as ranges: `0-4, 6, 8-9`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    if len(texts) > MOST_RANGES:
        texts[MOST_RANGES - 1 : -1] = ["..."]
    return ", ".join(texts)


def _branch(role: str, part: Part, *more: str) -> Branch:
    return Branch(f"{role} {part.name}", _join([*_options(part), *more]))


def _options(part: Part) -> Iterator[str]:
    """Yield the options that say more than the component's name: those without a default, or with another value."""
    for item in dataclasses.fields(part.config):
        value = getattr(part.config, item.name)
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        if value != default:
            yield f"{item.name} {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, Part):
        return value.name
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(module: nn.Module | None) -> str:
    size = 0 if module is None else parameters_of(module)
    return _count(size) if size else ""


def _count(size: int) -> str:
    return _plural(size, "parameter")


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _join(texts: Sequence[str]) -> str:
    return " · ".join(text for text in texts if text)
