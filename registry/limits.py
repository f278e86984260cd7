"""What a model may need before anything is allocated for it: in parameters, in rows of a batch, in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .marks import BrokenSpec
from .spec import Spec
from .units import size

MOST_PARAMETERS = 10**13  # ten times the largest model there is
MOST_TOKENS = 2**26  # of a micro batch, texts at their longest


def check_parameters(spec: Spec, parameters: int) -> None:
    """Raise SpecError where a model has more parameters than a spec may make."""
    if parameters > MOST_PARAMETERS:
        message = f"has {parameters:,} parameters; a spec may make {MOST_PARAMETERS:,} at most"
        raise BrokenSpec([spec.problem("model", message)])


def check_batch(spec: Spec) -> None:
    """Raise SpecError where a micro batch has more tokens than a spec may ask for."""
    tokens, rows = spec.train.batch_size * row_length(spec), spec.train.batch_size
    if tokens > MOST_TOKENS:
        path = "train.batch_size" if rows >= row_length(spec) else "data.seq_len"
        message = f"a batch of {rows:,} rows has {tokens:,} tokens; {MOST_TOKENS:,} at most"
        raise BrokenSpec([spec.problem(path, message)])


def check_activations(spec: Spec, device: torch.device | str) -> None:
    """Raise SpecError where what the layers read, kept for the backward pass, is more than a device has.

    It is told at once, where to estimate all that a training step needs takes its time. Frozen layers may keep nothing.
    """
    layers = sum(len(stack.layers) for stack in spec.model.stacks.values())
    # Two bytes a number: in bf16 and fp16 some of it is as narrow.
    kept = 2 * spec.train.batch_size * row_length(spec) * spec.model.d_model * layers
    if not spec.train.freeze:
        check_memory(spec, "train.batch_size", kept, "what the layers of such a batch read", device)


def row_length(spec: Spec) -> int:
    """Return how many tokens a row of a spec's data has at most; 1 where it is no text."""
    return 1 if spec.data is None else spec.data.config.seq_len or 1


def check_memory(spec: Spec, path: str, needed: int, what: str, device: torch.device | str) -> None:
    """Raise SpecError at `path` where `what` needs more bytes than a device has."""
    there = memory_of(torch.device(device))
    if there is not None and needed > there:
        where = "this machine" if torch.device(device).type == "cpu" else f"the device {device}"
        message = f"{what} needs {size(needed)} of memory at least, and {where} has {size(there)}"
        raise BrokenSpec([spec.problem(path, message)])


def memory_of(device: torch.device) -> int | None:
    """Return how many bytes a device has; None where that can't be told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def countable(spec: Spec, path: str) -> Iterator[None]:
    """Turn torch's refusal to count the bytes of a tensor, even on the meta device, into a SpecError at `path`."""
    try:
        yield
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise BrokenSpec([spec.problem(path, "is larger than any tensor can be: more than 2^63 bytes")]) from error
