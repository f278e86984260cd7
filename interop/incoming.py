"""From a Hugging Face folder to a model or to the folder of a run: every tensor is taken once, or nothing is."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.topology import Topology
from ..errors import CheckpointError
from ..registry.compose import compose
from ..registry.spec import Spec, dump_spec
from ..registry.versions import MADE_BY, made_by
from ..registry.weights import SPEC, WEIGHTS, digest
from .families import family_spec
from .folders import CONFIG, KEPT_CONFIG, whole_folder
from .mapping import SHOWN, Mapped, mapping
from .shards import DTYPES, Shards, read_json, shown
from .words import copy_text

AnyPath = str | os.PathLike[str]
OLDER = {"weight": "gamma", "bias": "beta"}


def import_checkpoint(hf_dir: AnyPath, spec: Spec | None = None) -> tuple[Spec, Topology]:
    """Return a spec and its model with the weights of a Hugging Face folder, on CPU in fp32, in eval mode.

    The spec's section `hf` says where they are; without a spec it follows from the folder's `config.json`, as
    `family_spec` says. Tensors are read one at a time: beside the model, no more than the largest of its parameters is
    held.

    Raises:
        SpecError: the spec has no section `hf`, or one that does not fit its model, or can't be composed; or as
            `family_spec` does.
        CheckpointError: the folder can't be read, or does not hold just the weights of this model.
    """
    spec = _as_spelt(family_spec(hf_dir) if spec is None else spec, Path(hf_dir))
    source = _Source(Path(hf_dir), spec)
    model = compose(spec, drawn=False)  # each tensor of its state_dict is mapped, or there is no mapping
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in source.weights():
            own[name].copy_(tensor)
    return spec, model.eval()


def import_run(hf_dir: AnyPath, spec: Spec | None, out: AnyPath) -> Path:
    """Write a Hugging Face folder as the folder of a run and return that.

    It gets the weights in the dtype that they are published in, the spec, the tokenizer where there is one with all
    that goes with it, the licence, and `config.json` as `hf_config.json`. It is written beside its place and renamed:
    it is whole, or not there.

    Raises:
        SpecError: as `import_checkpoint` does.
        CheckpointError: as `import_checkpoint` does, or `out` is there already.
    """
    folder = Path(hf_dir)
    spec = _as_spelt(family_spec(folder) if spec is None else spec, folder)
    with whole_folder(Path(out)) as beside:
        source = _Source(folder, spec)
        weights = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in source.weights()}
        (beside / WEIGHTS).parent.mkdir()
        save_file(weights, beside / WEIGHTS, {"format": "pt", "sha256": digest(weights)})
        (beside / SPEC).write_text(dump_spec(spec), encoding="utf-8", newline="\n")
        (beside / MADE_BY).write_text(json.dumps(made_by(spec), indent=2) + "\n", encoding="utf-8", newline="\n")
        if (folder / CONFIG).exists():
            read_json(folder, CONFIG)  # what goes back out later is at least a config
            shutil.copyfile(folder / CONFIG, beside / KEPT_CONFIG)
        copy_text(folder, beside)
    return Path(out)


def _as_spelt(spec: Spec, folder: Path) -> Spec:
    """Return a spec that also knows how a folder spells the weights of its norms: older ones have gamma and beta."""
    if spec.hf is None:
        return spec
    norms = {name.split(".")[-2] for name in Shards(folder).found if name.endswith(".gamma") and name.count(".") > 1}
    older = {f"{norm}.{ours}": f"{norm}.{theirs}" for norm in sorted(norms) for ours, theirs in OLDER.items()}
    endings = older | dict(spec.hf.endings)
    if endings == spec.hf.endings:
        return spec
    resolved = {**spec.resolved, "hf": {**spec.resolved["hf"], "endings": endings}}
    return replace(spec, hf=replace(spec.hf, endings=endings), resolved=resolved)


class _Source:
    """Hold a folder against the model of a spec, all at once, and then give the parameters one by one."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.shards = Shards(folder)
        model = compose(spec, "meta")
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        self.mapped = mapping(model, spec)
        assert spec.hf is not None  # mapping has seen to it
        self._check(spec.hf.ignore)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter by name, in the dtype that it is published in; it may lie in a file that is mapped."""
        for item in self.mapped:
            try:
                tensor = item.load(self.shards.read)
            except ValueError as error:
                raise CheckpointError(f"{self.shards.folder}: {item.parameter}: {error}") from None
            if tensor.shape != self.shapes[item.parameter]:
                raise CheckpointError(f"{self.shards.folder}: changed while it was read")
            yield item.parameter, tensor

    def _check(self, ignore: Collection[str]) -> None:
        """Raise CheckpointError unless the folder holds each tensor that is asked for, and no other."""
        found = self.shards.found
        asked = {name for item in self.mapped for name in item.published}
        spare = [n for n in found if n not in asked and not any(fnmatchcase(n, pattern) for pattern in ignore)]
        missing = [name for item in self.mapped for name in item.published if name not in found]
        wrong = [line for item in self.mapped for line in self._misfits(item)]
        owner = {name: item.parameter for item in self.mapped for name in item.published}
        total = len(wrong) + len(missing) + len(spare)
        if not total:
            return
        lines = wrong[:SHOWN]
        for name in missing[: SHOWN - len(lines)]:
            lines.append(f"{shown(name)} is missing, which {owner[name]} is made of{_nearest(name, spare)}")
        for name in spare[: SHOWN - len(lines)]:
            lines.append(f"{shown(name)} is taken by no parameter{_nearest(name, missing)}")
        if total > SHOWN:
            lines.append(f"... and {total - SHOWN} more")
        raise CheckpointError("\n".join(f"{self.shards.folder}: {line}" for line in lines))

    def _misfits(self, item: Mapped) -> Iterator[str]:
        """Say which tensors of one parameter are there with another shape, or a dtype that is not taken."""
        there = {name: self.shards.found[name] for name in item.published if name in self.shards.found}
        for name, published in there.items():
            if published.shape != item.published[name]:
                wanted = f"{item.published[name]} is wanted for {item.parameter} {tuple(self.shapes[item.parameter])}"
                yield f"{shown(name)} is {published.shape}; {wanted}"
            if published.dtype not in DTYPES:
                yield f"{shown(name)} is of dtype {published.dtype}; weights are {', '.join(DTYPES)}"
        if len(dtypes := sorted({published.dtype for published in there.values()})) > 1:
            yield f"{', '.join(map(shown, there))} make one parameter, and are of dtypes {' and '.join(dtypes)}"


def _nearest(name: str, choices: Collection[str]) -> str:
    """Return the end of a message: the name that was probably meant, where there is one."""
    close = difflib.get_close_matches(name, list(choices)[:1000], n=1)
    return f" (did you mean {shown(close[0])}?)" if close else ""
