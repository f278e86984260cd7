"""Which published tensors each parameter of a model is made of, as its spec and its components say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.component import Component
from ..core.heads import MultiHeadAttention
from ..core.moves import Get, Layouts, Move, Take
from ..core.topology import Topology
from ..errors import PluginError
from ..registry.marks import BrokenSpec, Mark, Problem, nearest
from ..registry.spec import Spec
from ..registry.typed import MAYBE, NUMBER, STACK, HfSettings, Place

NUMBERS = r"\d+"
SHOWN = 20  # of many names that are wrong


@dataclass(frozen=True)
class Mapped:
    """Say how one parameter is made: by `move`, whose names are published as `names` has them.

    `published`: the shape of each published tensor.
    """

    parameter: str
    move: Move
    names: Mapping[str, str]
    published: Mapping[str, tuple[int, ...]]

    def load(self, get: Get) -> Tensor:
        """Return the parameter, made of what `get` gives."""
        return self.move.load(lambda name: get(self.names[name]))

    def save(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return the published tensors that a parameter makes."""
        return {self.names[name]: saved for name, saved in self.move.save(tensor).items()}


def mapping(model: Topology, spec: Spec) -> list[Mapped]:
    """Return how each tensor of a model's `state_dict` is published, as section `hf` of its spec says.

    Raises:
        SpecError: there is no such section, or it names a module or a layout that there is not, leaves a parameter out,
            or gives two parameters one published name.
        PluginError: a component's layout does not fit its parameters.
    """
    if spec.hf is None:
        message = "is missing: it says where the modules stand in a Hugging Face checkpoint"
        raise BrokenSpec([spec.problem("hf", message)])
    found = _Finder(model, spec, spec.hf)
    mapped = [item for name, tensor in model.state_dict().items() if (item := found.mapped(name, tensor))]
    found.finish(mapped)
    return mapped


@dataclass(frozen=True)
class _Placed:
    """Hold a module that an entry of the spec names: the entry, where it stands there, and its moves."""

    entry: str
    module: nn.Module
    at: str
    moves: Mapping[str, Move]
    names: Mapping[str, str]


class _Finder:
    """Find the moves of one model, and note what the spec says wrong."""

    def __init__(self, model: Topology, spec: Spec, settings: HfSettings) -> None:
        self.spec = spec
        self.problems: list[Problem] = []
        self.left: list[str] = []
        self.modules = dict(model.named_modules())
        self.endings = settings.endings
        self.stacks = "|".join(map(re.escape, model.stacks))
        self.placed: dict[str, _Placed] = {}
        # The most particular first: a layer that is named goes before one that a number stands for.
        for entry in sorted(settings.places, key=lambda name: len(re.findall(NUMBER, name))):
            self._place(entry, settings.places[entry])

    def mapped(self, parameter: str, tensor: Tensor) -> Mapped | None:
        """Return how a parameter is published: by the nearest module around it that the spec names."""
        holder = next((path for path in _around(parameter) if path in self.placed), None)
        if holder is None:
            self.left.append(parameter)
            return None
        placed = self.placed[holder]
        own = parameter.removeprefix(f"{holder}.")
        move = placed.moves.get(own, Take(own))
        names = {name: _ended(_joined(placed.at, _renamed(name, placed.names)), self.endings) for name in move.names()}
        try:
            parts = move.save(torch.empty(tensor.shape, device="meta"))
        except (ValueError, RuntimeError) as error:
            raise PluginError(f"{_called(placed.module)}: the layout of {own} does not fit: {error}") from None
        return Mapped(parameter, move, names, {names[name]: tuple(part.shape) for name, part in parts.items()})

    def finish(self, mapped: list[Mapped]) -> None:
        """Raise SpecError with all that is wrong."""
        owners: dict[str, str] = {}
        for item in mapped:
            for name in item.names.values():
                if name in owners:
                    self.note(f"{owners[name]} and {item.parameter} are both published as {name}")
                owners[name] = item.parameter
        if self.left:
            more = f", and {len(self.left) - SHOWN} more" if len(self.left) > SHOWN else ""
            self.note(f"names no module that holds {', '.join(self.left[:SHOWN])}{more}")
        if self.problems:
            raise BrokenSpec(self.problems)

    def note(self, message: str) -> None:
        """Note a problem with the modules together."""
        self.problems.append(self.spec.problem("hf.modules", message))

    def _place(self, entry: str, place: Place) -> None:
        pattern = _pattern(entry.removesuffix(MAYBE), self.stacks)
        matched, names = entry.endswith(MAYBE), set[str]()
        for path, module in self.modules.items():
            match = pattern.fullmatch(path)
            if match is None:
                continue
            matched = True
            if path not in self.placed:
                moves = self._moves(entry, place, module)
                self.placed[path] = _Placed(entry, module, _filled(place.at, match), moves, place.renames)
                names.update(name for own in module.state_dict() for name in moves.get(own, Take(own)).names())
            elif len(re.findall(NUMBER, self.placed[path].entry)) == len(re.findall(NUMBER, entry)):
                self._wrong(entry, f"{path} is named by '{self.placed[path].entry}' too")
        if not matched:
            known = {re.sub(r"(?<![^.])\d+(?![^.])", "{layer}", path) for path in self.modules}
            self._wrong(entry, f"the model has no such module{nearest(entry, known)}")
        for name in place.sure if names else ():
            if not any(f"{published}.".startswith(f"{name}.") for published in names):
                self._wrong(entry, f"the layout has no name '{name}'{nearest(name, names)}")

    def _moves(self, entry: str, place: Place, module: nn.Module) -> Mapping[str, Move]:
        """Return the moves of the layout that an entry asks for, or of the module's first."""
        layouts: Layouts = module.layouts() if isinstance(module, Component) else {}
        if place.layout is None:
            moves = next(iter(layouts.values()), {})
        elif place.layout in layouts:
            moves = layouts[place.layout]
        else:
            has = "only its own names" if not layouts else f"no layout '{place.layout}'"
            self._wrong(entry, f"{_called(module)} has {has}{nearest(place.layout, layouts)}")
            return {}
        own = module.state_dict()
        if unknown := [name for name in moves if name not in own]:
            what = f"{_called(module)}: a layout speaks of {unknown[0]}, which is no parameter"
            raise PluginError(f"{what}{nearest(unknown[0], own)}")
        return moves

    def _wrong(self, entry: str, message: str) -> None:
        node = self.spec.origin.items["hf"].items["modules"]
        mark: Mark = node.place(entry)
        problem = Problem(mark, message)
        if problem not in self.problems:  # every layer that an entry names says the same
            self.problems.append(problem)


def _called(module: nn.Module) -> str:
    """Return what messages call a module: a shell bears the name of the mechanism in it."""
    return type(module.mechanism if isinstance(module, MultiHeadAttention) else module).__qualname__


def _pattern(entry: str, stacks: str) -> re.Pattern[str]:
    """Return what matches the modules that an entry of the spec names; a placeholder is the same number throughout.

    `stacks`: what matches the name of a stack.
    """
    parts = re.split(NUMBER, entry)
    seen: list[str] = []
    for place in range(1, len(parts), 2):
        name = parts[place]
        parts[place] = f"(?P={name})" if name in seen else f"(?P<{name}>{stacks if name == STACK else NUMBERS})"
        seen.append(name)
    return re.compile("".join(part if place % 2 else re.escape(part) for place, part in enumerate(parts)))


def _filled(at: str, match: re.Match[str]) -> str:
    """Return a place in the checkpoint with the numbers that an entry matched."""
    return re.sub(NUMBER, lambda found: match[found[1]], at)


def _around(parameter: str) -> Iterator[str]:
    """Yield the paths of the modules that hold a parameter, the nearest first, the model itself last."""
    path = parameter
    while path:
        path = path.rpartition(".")[0]
        yield path


def _ended(name: str, endings: Mapping[str, str]) -> str:
    """Return a published name with the longest ending that `endings` has replaced."""
    found = [old for old in endings if f".{name}".endswith(f".{old}")]
    old = max(found, key=len, default="")
    return name.removesuffix(old) + endings[old] if old else name


def _joined(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Return a published name with the longest beginning that `names` has replaced."""
    found = [old for old in names if f"{name}.".startswith(f"{old}.")]
    old = max(found, key=len, default=None)
    return name if old is None else names[old] + name[len(old) :]
