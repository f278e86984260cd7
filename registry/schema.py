"""Describes specs as a JSON Schema, with every registered component, so that editors complete and check them."""

from __future__ import annotations

import inspect
from typing import Any

from .manager import ComponentClass, Registry, default
from .records import record_of
from .written import spec_form


def schema(registry: Registry | None = None) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a spec that may extend another: it says what is allowed, not what is missing.

    Raises:
        PluginError: an installed package can't be used.
    """
    definitions = _Definitions(registry or default())
    spec = spec_form().schema(definitions)
    reference = {"type": "string", "pattern": r"\$\{", "description": "another value of the spec, ${a.b}"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Transom spec",
        **spec,
        "$defs": {"reference": reference, **dict(sorted(definitions.found.items()))},
    }


class _Definitions:
    """Collect one definition for each kind that is met."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.found: dict[str, Any] = {}

    def part(self, kind: str) -> dict[str, Any]:
        if kind not in self.found:
            self.found[kind] = {}  # options may hold parts of the same kind
            names = self.registry.names(kind, everything=True)
            options = {name: self.component(name, self.registry.get(kind, name)) for name in names}
            known = sorted({key for option in options.values() for key in option["properties"]} - {"kind"})
            unnamed = {"type": "object", "not": {"required": ["kind"]}, "propertyNames": {"enum": known}}
            self.found[kind] = {
                "anyOf": [
                    {"enum": names, "description": f"{kind} with the options that it has by itself"},
                    *options.values(),
                    {**unnamed, "description": "options laid over those of the kind that is inherited"},
                    {"$ref": "#/$defs/reference"},
                ]
            }
        return {"$ref": f"#/$defs/{kind}"}

    def stack_names(self) -> list[str]:
        topologies = (self.registry.get("topology", name) for name in self.registry.names("topology", everything=True))
        return sorted({name for cls in topologies if len(cls.stacks) > 1 for name in cls.stacks})

    def component(self, name: str, cls: ComponentClass) -> dict[str, Any]:
        options = record_of(cls.Config).schema(self)
        about = " ".join(inspect.cleandoc(cls.__doc__ or name).split("\n\n")[0].split())
        properties = {"kind": {"const": name, "description": about}, **options["properties"]}
        for option, version in cls.since.items():
            said = properties[option].get("description")
            properties[option]["description"] = f"{said}; since {version}" if said else f"since {version}"
        return {**options, "description": about, "properties": properties, "required": ["kind"]}
