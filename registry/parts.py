"""Parts of a spec, `{kind: local, window: 64}` or short `local`: their options, and what a change of kind keeps."""

from __future__ import annotations

from typing import Any

from ..core.component import Part
from ..errors import PluginError
from .forms import Form, ListOf, Reading, Schemas, has_indices, merge_maps
from .interpolate import is_reference
from .manager import ComponentClass, Registry, UnknownName
from .marks import BROKEN, Node, node_of, shown
from .records import record_of

NONE = "none"


class PartForm(Form):
    """A component of one kind, chosen by name, with its options; `none` where `optional`."""

    deep = True

    def __init__(self, kind: str, optional: bool = False) -> None:
        self.kind = kind
        self.optional = optional
        article = "an" if kind[0] in "aeiou" else "a"
        self.wanted = f"{article} {kind}: its kind, or a map with kind and options" + (", or none" if optional else "")

    def _bind(self, node: Node, reading: Reading) -> Any:
        written = as_map(node)
        if written is None:
            return self.refuse(node, reading)
        named = written.items.get("kind")
        if named is None:
            missing = node.mark.below("kind"), f"is missing: which {self.kind}?"
            return BROKEN if reading.partial else reading.note(*missing)
        options = {key: child for key, child in written.items.items() if key != "kind"}
        if self.optional and named.value == NONE:
            return reading.note(node.mark, f"{NONE} takes no options") if options else None
        cls = self.component(named, reading)
        if cls is None:
            return BROKEN
        written = renewed(written, cls, reading)
        options = {key: child for key, child in written.items.items() if key != "kind"}
        config = record_of(cls.Config).bind_fields(written, options, reading)
        return BROKEN if config is BROKEN else Part(cls, config)

    def component(self, named: Node, reading: Reading) -> ComponentClass | None:
        """Return the class that a `kind` names, noting what is wrong with it otherwise."""
        if named.value is BROKEN or (reading.partial and is_reference(named)):
            return None
        if not isinstance(named.value, str):
            reading.note(named.mark, f"should be the name of a component, not {shown(named.plain())}")
            return None
        try:
            return reading.registry.get(self.kind, named.value)
        except UnknownName as error:
            reading.note(named.mark, str(error))
            return None
        except PluginError as error:
            raise PluginError(f"{named.mark}: {named.mark.path}: {error}") from error

    def merge(self, base: Node, over: Node, reading: Reading) -> Node:
        """Lay a part over another: a new kind keeps the options that it declares too, the others are dropped."""
        old, new = as_map(base), as_map(over)
        if old is None or new is None:
            return merge_maps(base, over, reading, lambda _: None) if "kind" not in over.items else over
        before, after = old.items.get("kind"), new.items.get("kind", old.items.get("kind"))
        if before is None or after is None:
            return merge_maps(old, new, reading, lambda _: None)
        if before.value == NONE and "kind" not in new.items:
            for gone in new.items.values():
                reading.drop(gone, f"is taken by no {self.kind}: there is {NONE}")
            return base
        if NONE in (before.value, after.value):
            return over
        if is_reference(before) or is_reference(after):
            reading.note(after.mark, "a kind that changes another can't be a reference: write it out")
            return over
        try:
            old = renewed(old, reading.registry.get(self.kind, str(before.value)), reading)
            cls = reading.registry.get(self.kind, str(after.value))
        except UnknownName:
            return over  # noted where it is bound
        new, forms = renewed(new, cls, reading), record_of(cls.Config).forms
        kept = {key: child for key, child in old.items.items() if key in forms or before.value == after.value}
        for key, gone in old.items.items():
            if key not in kept and key != "kind":
                reading.drop(gone, f"went with {before.value}, which is now {after.value}")
        return merge_maps(node_of({"kind": before, **kept}, old.mark, old.keys), new, reading, forms.get)

    def dump(self, value: Any, registry: Registry) -> Any:
        if value is None:
            return NONE
        options = record_of(value.cls.Config).dump(value.config, registry)
        return {"kind": registry.full_name(value.cls), **options}

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        part = schemas.part(self.kind)
        return {"anyOf": [{"const": NONE}, part]} if self.optional else part


class PartsForm(Form):
    """Components of one kind that act together: one, a list, or `none`; where `optional`, `null` is to inherit them.

    In a list, `none` holds a place that an override may fill; an index map laid over it changes single items.
    """

    deep = True

    def __init__(self, kind: str, optional: bool = False) -> None:
        self.item = PartForm(kind)
        self.items = ListOf(PartForm(kind, optional=True))
        self.wanted = f"{self.item.wanted}, a list of such, or none"
        self.optional = optional

    def _bind(self, node: Node, reading: Reading) -> Any:
        if node.value == NONE:
            return ()
        if isinstance(node.value, dict) and node.items.keys() == {"kind"} and node.items["kind"].value == NONE:
            return ()
        if node.value is None and self.optional:
            return None
        if node.value is None or isinstance(node.value, bool | int | float):
            return self.refuse(node, reading)
        if isinstance(node.value, tuple) or has_indices(node):
            values = self.items.bind(node, reading)
            return BROKEN if values is BROKEN else tuple(value for value in values if value is not None)
        value = self.item.bind(node, reading)
        return BROKEN if value is BROKEN else (value,)

    def merge(self, base: Node, over: Node, reading: Reading) -> Node:
        if has_indices(over):
            several = base if isinstance(base.value, tuple) else node_of((base,), base.mark)
            return self.items.merge(several, over, reading)
        if isinstance(base.value, tuple) or isinstance(over.value, tuple):
            return over
        return self.item.merge(base, over, reading)

    def dump(self, value: Any, registry: Registry) -> Any:
        if value is None:
            return None
        parts = [self.item.dump(part, registry) for part in value]
        return parts if len(parts) > 1 else parts[0] if parts else NONE

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        part = self.item.schema(schemas)
        empty = [{"type": "null"}] if self.optional else []
        return {"anyOf": [{"const": NONE}, *empty, part, {**self.items.schema(schemas), "minItems": 1}]}


def renewed(written: Node, cls: ComponentClass, reading: Reading) -> Node:
    """Return a part's map with the options that its component renamed under their new names, noting each."""
    if not written.items.keys() & {*cls.renamed, *cls.gone}:
        return written
    entries, keys = dict[str, Node](), dict(written.keys)
    for key, child in written.items.items():
        name = cls.renamed.get(key, key)
        if key in cls.gone:
            reading.note(written.place(key), f"option '{key}' is gone: {cls.gone[key]}")
        elif name != key and name in written.items:
            reading.note(written.place(key), f"is called '{name}' now, which is given too: leave this one out")
        else:
            entries[name] = child
            keys[name] = written.place(key)
            if name != key:
                reading.drop(child, f"is called {name} now: write {name}")
    return node_of(entries, written.mark, keys)


def as_map(node: Node) -> Node | None:
    """Return a part's node as a map with its kind; None for what is no part, or a reference to one."""
    if isinstance(node.value, dict):
        return node
    if not isinstance(node.value, str) or is_reference(node):
        return None
    return node_of({"kind": node}, node.mark)
