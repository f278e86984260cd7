"""How encoders are held against the peer's rows alone, whatever a row is padded with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peers import apart
from torch import Tensor
from two_sided import heads_of

from transom.interop import export_checkpoint, family_spec, import_checkpoint, import_run


def pair(theirs: Any, folder: Path) -> Any:
    """Return the imported model, and check that all that it uses goes back bit for bit."""
    theirs.save_pretrained(folder / "hf")
    _, ours = import_checkpoint(folder / "hf")
    back = export_checkpoint(import_run(folder / "hf", None, folder / "run"), folder / "back")
    again, there = type(theirs).from_pretrained(back).state_dict(), theirs.state_dict()
    unused = {name for name in there if "pooler" in name and not {"next", "pooled"} & set(ours.heads)}
    assert again.keys() == there.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in there.items() if name not in unused)
    return ours


@torch.no_grad()
def rows_alone(
    peer: Any, ours: Any, inputs: Mapping[str, Tensor], mask: Tensor, names: Mapping[str, str]
) -> list[float]:
    """Return the errors of hidden states and logits of all rows, (B, T) inputs padded where mask (B, T) is 0."""
    found, mine, wanted = ours(**inputs, attention_mask=mask), [], []
    for row in range(len(mask)):
        real = mask[row].bool()
        alone = {name: ids[row : row + 1, real] for name, ids in inputs.items()}
        there = peer(**alone, output_hidden_states=True)
        mine.append([found.hidden[row, real]])
        wanted.append([there.hidden_states[-1][0, : int(real.sum())]])
        for name, logits in heads_of(found.logits, names).items():
            mine[row].append(logits[row][real] if logits.dim() == 3 else logits[row : row + 1])
            wanted[row].append(there[name].flatten(0, -2))
    pairs = zip(zip(*mine, strict=True), zip(*wanted, strict=True), strict=True)
    return [apart(torch.cat(own), torch.cat(other)) for own, other in pairs]


@torch.no_grad()
def changed_by(folder: Path, inputs: Mapping[str, Tensor], *overrides: str) -> dict[str, float]:
    """Return how far each override alone takes a model from itself."""
    _, ours = import_checkpoint(folder / "hf")
    found = {}
    for override in overrides:
        _, other = import_checkpoint(folder / "hf", family_spec(folder / "hf", [override]))
        found[override] = apart(other(**inputs).hidden, ours(**inputs).hidden)
    return found
