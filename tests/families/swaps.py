"""Every family with another attention, norm or position, as the command line swaps them: it trains, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from transom.core.topology import Topology
from transom.core.vocabulary import Vocabulary
from transom.errors import SpecError
from transom.registry.compose import build_objective, compose
from transom.registry.manager import default
from transom.registry.sources import families
from transom.registry.spec import Spec, load_spec, parse_spec
from transom.training.step import Step

KINDS = ("attention", "norm", "position")
# What an option of this name is set to, in whatever component needs it.
NEEDED: Mapping[str, Any] = {"window": 48, "rope_dim": 64}
# By option: what it is divided by, where it is 64 or more; 8 for all others. Heads stay as many, so that widths divide.
SHARES: Mapping[str, int] = {"n_heads": 1, "n_kv_heads": 1, "n_key_heads": 1, "max_distance": 1, "vocab_size": 64}
ROWS, LENGTH, STEPS = 2, 15, 3


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
    """Return a spec of an eighth of a model's widths, with one layer of each group."""
    plain = {key: spec.resolved[key] for key in ("name", "model", "objective") if key in spec.resolved}

    def smaller(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: smaller(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [smaller(item) for item in value]
        if key == "repeat":
            return 1
        return value // SHARES.get(key, 8) if type(value) is int and value >= 64 else value

    found: dict[str, Any] = smaller(plain)
    return found


def _trained(spec: Spec) -> Iterator[torch.Tensor]:
    """Yield the losses of a few steps on one batch."""
    torch.manual_seed(0)
    model = compose(spec).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = _asked(model, spec)
    for _ in range(STEPS + 1):
        loss = loss_of()
        yield loss.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _asked(model: Topology, spec: Spec) -> Callable[[], torch.Tensor]:
    """Return what gives the loss of a batch; of a model that is asked for nothing, the size of its hidden states."""
    inputs = {name: put for graph in model.graphs().values() for name, put in graph.inputs.items()}
    size = min(put.high for name, put in inputs.items() if name.endswith("input_ids"))
    if spec.objective is None:
        ids = {name: torch.randint(4, size, (ROWS, LENGTH)) for name in inputs if name.endswith("input_ids")}
        return lambda: model(**ids, logits=False).hidden.square().mean()
    # The last ids are left to objectives that need some beyond the tokenizer's.
    objective = build_objective(spec, Vocabulary(size - 40, pad=0, bos=1, eos=2, mask=3, sentence_ends=(4, 5, 6, 7)))
    fields = {n: torch.randint(4, size - 40, (ROWS, LENGTH + objective.lookahead)) for n in sorted(objective.fields)}
    prepared = objective.prepare(fields, torch.Generator().manual_seed(0))
    step = Step(model, objective)

    def loss() -> torch.Tensor:
        """Return the mean losses of all heads together."""
        totals, _ = step(prepared.inputs, prepared.targets, prepared.mask, prepared.others)
        return (totals / prepared.counts.clamp(min=1)).sum()

    return loss
