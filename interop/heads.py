"""Which heads the architectures of a family have, and to which of them a field goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..registry.configured import EACH, HEADS, ArchitectureSettings, ConfigSettings
from ..registry.marks import Node, Problem, nearest, node_of, piece_at
from ..registry.parts import NONE
from ..registry.spec import Spec
from ..registry.written import ONLY_HEAD


class Heads:
    """Hold the heads that a family declares, and which of them one model has: those of `model.head` at first."""

    def __init__(self, family: Spec) -> None:
        self.section = family.origin.items["hf"].items["config"]
        own = family.origin.items["model"].items["heads"]
        further = self.section.items["heads"].items if "heads" in self.section.items else {}
        self.mark = own.mark
        self.further = {name: node for name, node in further.items() if node.value != NONE and name not in own.items}
        self.known = {**own.items, **self.further}
        self.there: Sequence[str] = [*own.items]

    def chosen(self, architectures: Sequence[ArchitectureSettings]) -> Node | None:
        """Return the piece of a spec that gives a model the heads of its architectures; None where nothing changes.

        Of several architectures that say which heads they have, the last counts.
        """
        self.there = next((one.heads for one in reversed(architectures) if one.heads is not None), self.there)
        none = node_of(NONE, self.mark)
        heads = {name: none for name in self.known if name not in self.there}
        heads |= {name: node for name, node in self.further.items() if name in self.there}
        if not heads:
            return None
        return piece_at(HEADS, none if self.known.keys() == {ONLY_HEAD} else node_of({**heads}, self.mark))

    def paths(self, to: str) -> list[str]:
        """Return the options that a path means, of heads that the model has.

        For `model.head.*.OPTION`, they are those of the heads that write it.
        """
        if any(to.startswith(f"{HEADS}.{name}.") for name in self.known if name not in self.there):
            return []
        return _paths(to, {name: self.known[name] for name in self.there})

    def problems(self, settings: ConfigSettings) -> Iterator[Problem]:
        """Yield what a family says of heads that it does not have, each at its place."""
        for name, node in self.section.items["architectures"].items.items():
            architecture = settings.architectures[name]
            for head in () if isinstance(architecture, str) else architecture.heads or ():
                if head not in self.known:
                    yield Problem(node.items["heads"].mark, self._no(head))
        fields = self.section.items["fields"].items if "fields" in self.section.items else {}
        for name, node in fields.items():
            for to in settings.readings[name].to if name in settings.readings else ():
                head, inside, _ = to.removeprefix(f"{HEADS}.").partition(".")
                named = to.startswith(f"{HEADS}.") and inside and ONLY_HEAD not in self.known
                if not _paths(to, self.known):
                    yield Problem(node.mark, f"'{to}' is an option that no head of the family writes")
                elif named and head not in (EACH, *self.known):
                    yield Problem(node.mark, self._no(head))

    def _no(self, head: str) -> str:
        return f"the family has no head '{head}'{nearest(head, self.known)}"


def _paths(to: str, heads: Mapping[str, Node]) -> list[str]:
    """Return the options of some heads that a path means."""
    option = to.removeprefix(f"{HEADS}.{EACH}.")
    if option == to:
        return [to]
    those = [name for name, node in heads.items() if option.partition(".")[0] in node.items]
    return [f"{HEADS}.{option}" if name == ONLY_HEAD else f"{HEADS}.{name}.{option}" for name in those]
