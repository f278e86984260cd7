"""First weights: drawn per module from the seed and the module's name, so that they depend on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import PluginError


def initialise(model: nn.Module, seed: int, *, drawn: bool = True) -> None:
    """Fill every parameter and buffer of a model on CPU through its modules' `reset_parameters`.

    Each module draws from a generator of its own, seeded by `seed` and its name: swapping one part leaves the first
    weights of all others as they were, and a model built on the meta device equals one built directly.

    `drawn`: False leaves out the random numbers of modules that a `state_dict` holds whole, for whoever loads one.

    Raises:
        PluginError: a module has a parameter or a buffer, and neither it nor one that it is part of fills it.
    """
    filled: set[nn.Module] = set()
    kept = set() if drawn else {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    for name, module in model.named_modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            filled.update(module.modules())
            # What no state_dict holds must be as ever, and follows from all that its module draws before it.
            whole = not drawn and all(id(tensor) in kept for tensor in (*module.parameters(), *module.buffers()))
            with torch.random.fork_rng(devices=[]), Undrawn() if whole else nullcontext():
                # Not torch.manual_seed, which would seed every other device too, for good.
                torch.default_generator.manual_seed(seed_of(seed, name))
                reset()
        elif module not in filled:
            _check_empty(module)


def _check_empty(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        where = f"{type(module).__module__}.{type(module).__qualname__}"
        raise PluginError(f"{where}: {name} {tuple(tensor.shape)} is filled by no method reset_parameters: write one")


def materialise(model: nn.Module, device: torch.device | str, seed: int, *, drawn: bool = True) -> None:
    """Allocate a model that was built on the meta device, and initialise it; the same numbers on every device."""
    _allocate(model)
    initialise(model, seed, drawn=drawn)
    model.to(device)


def _allocate(model: nn.Module) -> None:
    """Give parameters and buffers memory on the CPU: `to_empty` would, but loads torch's compiler and sympy for it."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            here = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(module, name, nn.Parameter(here, requires_grad=weight.requires_grad))
        for name, tensor in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(tensor.shape, dtype=tensor.dtype))


class Undrawn(TorchFunctionMode):
    """Leave out random first values: nothing is allocated, where to ask for them makes torch load its compiler, or
    what is known takes their place.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWING:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


_DRAWING = {nn.init.normal_, nn.init.uniform_, torch.Tensor.normal_, torch.Tensor.uniform_}


@contextmanager
def unallocated() -> Iterator[None]:
    """Let modules that are built have no memory and draw nothing: for whoever asks what they are, or allocates them."""
    with torch.device("meta"), Undrawn():
        yield


def seed_of(seed: int, name: str) -> int:
    """Return a 63-bit seed for `name` under `seed`."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
