"""The weights in a run's folder: named tensors that carry a digest of themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..core.component import Component
from ..core.topology import Topology
from ..errors import CheckpointError
from .compose import compose
from .spec import load_spec
from .versions import check_packages, warn_of_changes

SPEC, WEIGHTS = "spec.yaml", "model/model.safetensors"
"""Where a run's folder holds what it was made from, and its last good weights."""


def load_model(folder: Path) -> Topology:
    """Return the model of a run's folder with its last good weights, on CPU in fp32, in eval mode.

    Raises:
        CheckpointError: the folder is no run, has no weights yet, or they are damaged or of another model.
        PluginError: a package that it was made with is not installed here; other versions are a `TransomWarning`.
    """
    if not (folder / SPEC).is_file():
        raise CheckpointError(f"{folder}: is no run: {folder / SPEC} is missing; give the folder that training wrote")
    check_packages(folder)
    spec = load_spec(folder / SPEC)
    warn_of_changes(folder, spec)
    model = compose(spec, drawn=False)
    fill(model, last_weights(folder), folder / WEIGHTS)
    return model.eval()


def last_weights(folder: Path) -> dict[str, Tensor]:
    """Read the last good weights of a run's folder; raise CheckpointError when there are none, or they are damaged."""
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder}: has no weights yet: its training stopped before the first checkpoint")
    return read_weights(folder / WEIGHTS)


def fill(model: Topology, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Put weights into a model; raise CheckpointError as `matched` does."""
    model.load_state_dict(matched(model, weights, origin))


def matched(model: Topology, weights: Mapping[str, Tensor], origin: Path) -> Mapping[str, Tensor]:
    """Return weights by the model's own names; raise CheckpointError, with the names, where the two are not alike.

    Those that its components have renamed may have their old names.
    """
    own, weights = model.state_dict(), renewed(model, weights)
    wrong = [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is not in the model" for name in weights if name not in own]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, in the model {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{origin}: are not the weights of this model: {'; '.join(wrong[:5])}{more}")
    return weights


def renewed(model: Topology, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return named tensors of a model's parameters with those that its components have renamed under the new names."""
    places = [(f"{place}." if place else "", module) for place, module in model.named_modules()]
    changes = [
        (place + old, place + new)
        for place, module in places
        if isinstance(module, Component)
        for old, new in module.renamed_weights.items()
    ]
    found = {}
    for name, tensor in tensors.items():
        fresh = (new + name[len(old) :] for old, new in changes if f"{name}.".startswith(f"{old}."))
        # An old name may have come to mean something else: where there are both, each is what it says.
        found[next((other for other in fresh if other not in tensors), name)] = tensor
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights, on CPU, and hold them against the digest in its header.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    wanted, tensors = header_digest(path), read_tensors(path)
    if wanted != digest(tensors):
        raise CheckpointError(f"{path}: is damaged: the weights are not those that its header was written for")
    return tensors


def header_digest(path: Path) -> str | None:
    """Return the digest in the header of a file of weights; raise CheckpointError when it can't be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read as safetensors: {error}") from None


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a file takes them: on CPU, without gaps."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, of the names, shapes and bytes of tensors on CPU."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors, on CPU; raise CheckpointError when that fails."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read as safetensors: {error}") from None
