"""Every family with another attention, norm or position, as the command line swaps them: it trains, or is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from transom.core.vocabulary import Vocabulary
from transom.errors import SpecError
from transom.registry.compose import build_objective, compose
from transom.registry.manager import default
from transom.registry.sources import families
from transom.registry.spec import Spec, load_spec, parse_spec
from transom.training.step import Step

KINDS = ("attention", "norm", "position")
# What an option of this name is set to, in whatever component needs it.
NEEDED: Mapping[str, Any] = {"window": 48}
KEPT = frozenset({"max_distance"})  # no width, and bound to options that are too small to shrink
ROWS, LENGTH, STEPS = 2, 19, 3


@dataclass(frozen=True)
class Swap:
    """Name a family, and the part that takes the place of its own."""

    family: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.family}: {self.kind} {self.name}"

    @property
    def overrides(self) -> list[str]:
        """Return what the command line is given."""
        where = "model.position" if self.kind == "position" else f"model.layer.{self.kind}"
        config = default().get(self.kind, self.name).Config
        asked = [name for name in NEEDED if name in getattr(config, "__dataclass_fields__", {})]
        return [f"{where}.kind={self.name}", *(f"{where}.{name}={NEEDED[name]}" for name in asked)]


def swaps() -> list[Swap]:
    """Return all swaps of what is registered."""
    return [Swap(family, kind, name) for family in families() for kind in KINDS for name in default().names(kind)]


def tried(swap: Swap) -> str | None:
    """Train a small model of a family with its part swapped, and return None; or return why it is refused."""
    try:
        spec = load_spec(swap.family, swap.overrides)
        model = compose(spec, device="meta")
    except SpecError as error:
        return str(error)
    del model
    small = parse_spec(shrunk(spec))
    losses = list(_trained(small))
    assert all(map(torch.isfinite, losses)), f"{swap}: {losses}"
    assert losses[-1] < losses[0], f"{swap}: {losses}"
    return None


def shrunk(spec: Spec) -> dict[str, Any]:
    """Return a spec of a sixteenth of a model's widths, with one layer of each group."""
    plain = {key: spec.resolved[key] for key in ("name", "model", "objective") if key in spec.resolved}

    def smaller(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: smaller(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [smaller(item) for item in value]
        if key == "repeat":
            return 1
        return value // 16 if type(value) is int and value >= 64 and key not in KEPT else value

    found: dict[str, Any] = smaller(plain)
    return found


def _trained(spec: Spec) -> Iterator[torch.Tensor]:
    """Yield the losses of a few steps on one batch."""
    torch.manual_seed(0)
    model = compose(spec).train()
    size = min(
        graph.inputs[name].high for graph in model.graphs().values() for name in graph.inputs if "input_ids" in name
    )
    objective = build_objective(spec, Vocabulary(size - 8, pad=0, bos=1, eos=2, mask=3))
    fields = {"input_ids": torch.randint(4, size - 8, (ROWS, LENGTH + objective.lookahead))}
    for name in sorted(objective.fields - fields.keys()):
        fields[name] = torch.randint(4, size - 8, (ROWS, LENGTH))
    prepared = objective.prepare(fields, torch.Generator().manual_seed(0))
    step, optimizer = Step(model, objective), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS + 1):
        loss, _ = step(prepared.inputs, prepared.targets, prepared.mask)
        yield loss.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
