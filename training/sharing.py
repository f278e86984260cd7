"""How processes share a model that they train together: each has all of it, or a share of every weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from ..core.block import Block
from ..registry.settings import TrainSettings
from .processes import World
from .step import Step

UNSHARED = {
    "fp16": "each process would scale by overflows of its own share of the gradients, and shares of one step would not "
    "fit: use bf16, or leave train.shard out",
    "float8": "products in 8 bits hold their weights themselves, whole, and sharding gathers those of a layer when it "
    "runs: use bf16, or leave train.shard out",
}
"""Precisions that several processes can't train in that share weights: why not."""


class Sharing(ABC):
    """Run a step's passes in this process, its gradients being those of all processes after the last one.

    `run`: the forward pass, to be called as the step is. Gradients are the mean of the processes'. `caches`: whether
    autocast keeps a weight that it has narrowed until the pass ends.
    """

    run: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    caches: ClassVar[bool] = True

    @abstractmethod
    def passing(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of a micro batch's passes; `last`: no other of the step comes after it."""

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """Return the norm of all gradients together, the same in each process."""
        return get_total_norm(gradients)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters, or what is kept of each, as one process would have them: nothing but in the first.

        All processes call it together.
        """
        return dict(tensors)

    def share(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """Return what this process keeps, on its device, of a tensor of a parameter's shape."""
        return tensor.to(parameter.device)

    def compile(self, block: Block, **options: Any) -> None:
        """Have a block compiled."""
        block.compile(**options)


@final
class Alone(Sharing):
    """Be the only process."""

    def __init__(self, step: Step, world: World) -> None:
        self.run = step.to(world.device)

    def passing(self, last: bool) -> AbstractContextManager[None]:
        """Have nobody to exchange gradients with."""
        return nullcontext()


@final
class DataParallel(Sharing):
    """Have all weights in each process, and exchange gradients as the last backward pass of a step gives them."""

    def __init__(self, step: Step, world: World) -> None:
        self._replica = DistributedDataParallel(step.to(world.device))
        self.run = self._replica

    def passing(self, last: bool) -> AbstractContextManager[None]:
        """Keep gradients to oneself but in the last passes."""
        return nullcontext() if last else self._replica.no_sync()


@final
class Sharded(Sharing):
    """Have a share of each weight, its gradient and its moments (Zhao et al. 2023, https://arxiv.org/abs/2304.11277).

    A block's weights are whole while it runs, those of the rest of the model, heads and embeddings, during all passes
    of a micro batch. Weights stay fp32 when they are gathered, and autocast narrows them as ever: what is computed is
    what one process would compute, where a policy of FSDP's would narrow norms, biases and tables too.
    """

    caches: ClassVar[bool] = False  # else all layers' would be there at once, narrow but whole

    def __init__(self, step: Step, world: World) -> None:
        from torch.distributed.device_mesh import init_device_mesh  # which takes a tenth of a second
        from torch.distributed.fsdp import fully_shard

        self._mesh = init_device_mesh(world.device.type, (world.size,))
        blocks = [module for module in step.modules() if isinstance(module, Block)]
        for module in (*blocks, step):  # a part before what it is part of
            split = fully_shard(module, mesh=self._mesh)
            split.set_force_sum_reduction_for_comms(True)  # and divide then: not every gloo forms a mean itself
        # Not before: weights are moved to the device as they are shared out, where all would not have room at once.
        step.to(world.device)
        self._root = split
        self.run = step

    def passing(self, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients after each micro batch, as whole ones would take the room that was to be saved."""
        self._root.set_is_last_backward(last)
        return nullcontext()

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """Return the norm of all processes' shares together."""
        return whole(get_total_norm(gradients))

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather one tensor after the other; only the first process keeps any, on CPU."""
        found = {}
        for name, tensor in tensors.items():
            gathered = whole(tensor.detach())
            if self._mesh.get_rank() == 0:
                found[name] = gathered.cpu()
        return found

    def share(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """Cut out this process's share of what has an entry for each of a parameter."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        if tensor.dim() == 0:
            return tensor.to(parameter.device)
        return distribute_tensor(tensor, self._mesh, parameter.placements, src_data_rank=None)

    def compile(self, block: Block, **options: Any) -> None:
        """Have what a block computes compiled, and not how its weights come and go."""
        object.__setattr__(block, "forward", torch.compile(block.forward, **options))


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that processes have shares of; all call it together."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared(step: Step, settings: TrainSettings, world: World) -> Sharing:
    """Return how the processes share a step, which is moved to their devices; its parameters may be others then."""
    if world.size == 1:
        return Alone(step, world)
    return Sharded(step, world) if settings.shard else DataParallel(step, world)
