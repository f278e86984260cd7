"""Micro batches as one CUDA graph: what a pass launches is captured once, and replayed for all others of its shapes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..core.objective import Prepared
from ..errors import TrainingError
from ..registry.compose import build_data
from ..registry.spec import Spec
from .processes import World

Result = TypeVar("Result")
WARM = 3
"""Runs before a capture: what compiles, and what picks its algorithm, does so in these."""
MOST = 8
"""Graphs that a training keeps."""


def captured(
    warm: Callable[[], object], run: Callable[[], Result], device: torch.device, beside: torch.cuda.CUDAGraph | None
) -> tuple[Result, torch.cuda.CUDAGraph]:
    """Return what `run` gives and the graph of what it launches, after a few runs of `warm` aside.

    `beside`: another graph, whose memory it may use: neither is replayed while the other's results are wanted.
    """
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            warm()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=None if beside is None else beside.pool()):
        return run(), graph


def check_graph(spec: Spec, world: World) -> str | None:
    """Say why no pass of a training can be captured, or None when it can."""
    if world.device.type != "cuda":
        return f"a CUDA graph needs a CUDA device, and this training is on {world.device.type}: leave it out"
    if world.size > 1:
        return f"{world.size} processes exchange gradients as these come, which no graph captures: leave it out"
    if spec.train.checkpoint_activations or spec.train.memory_gb is not None:
        return "layers that compute twice read the state of random numbers, which no graph captures: leave one out"
    data = build_data(spec)
    if data.rows != "stream":
        return f"batches of data '{data.name}' are as wide as their longest row, and a graph has one width"
    return None


class CapturedPass:
    """Run micro batches forwards and backwards by graphs, whose gradients are added to those that are there.

    A graph is of batches of the same tensors and shapes: with a mask, say, and without. The parameters' gradients are
    tensors that all graphs know: they are set to 0 in place, and never taken away.
    """

    def __init__(
        self, run: Callable[[Prepared, Tensor], Tensor], learned: Iterable[nn.Parameter], device: torch.device
    ) -> None:
        """`run` takes a batch and the scale of its losses, adds to gradients, and returns the loss."""
        self._run = run
        self._learned = list(learned)
        self._device = device
        self._graphs: dict[Hashable, tuple[list[Tensor], Tensor, torch.cuda.CUDAGraph]] = {}

    def __call__(self, part: Prepared, scale: Tensor, seed: int) -> Tensor:
        """Return the loss of a batch on the device, `seed` being that of what the pass draws.

        Raises:
            TrainingError: batches have more shapes than are worth a graph each.
        """
        given = _tensors(part) | {"scale": scale}
        key = tuple((name, tuple(tensor.shape)) for name, tensor in given.items())
        if key not in self._graphs:
            if len(self._graphs) == MOST:
                raise TrainingError(f"train.cuda_graph: batches have more than {MOST} shapes: leave it out")
            self._graphs[key] = self._captured(part, scale)
        own, loss, graph = self._graphs[key]
        for kept, tensor in zip(own, given.values(), strict=True):
            kept.copy_(tensor)
        torch.manual_seed(seed)
        graph.replay()
        return loss.clone()

    def clear(self) -> None:
        """Set all gradients to 0 where they are."""
        for parameter in self._learned:
            if parameter.grad is not None:
                parameter.grad.zero_()

    def _captured(self, part: Prepared, scale: Tensor) -> tuple[list[Tensor], Tensor, torch.cuda.CUDAGraph]:
        """Return a graph of batches like one: what it reads, the loss that it writes, and itself."""
        own, ours = (
            replace(
                part,
                inputs={name: tensor.clone() for name, tensor in part.inputs.items()},
                targets=part.targets.clone(),
                mask=None if part.mask is None else part.mask.clone(),
                others={name: tensor.clone() for name, tensor in part.others.items()},
            ),
            scale.clone(),
        )
        before = [None if p.grad is None else p.grad.clone() for p in self._learned]
        beside = next((graph for *_, graph in self._graphs.values()), None)
        loss, graph = captured(lambda: self._run(own, ours), lambda: self._run(own, ours), self._device, beside)
        for parameter, grad in zip(self._learned, before, strict=True):  # of what the first runs added
            if parameter.grad is not None:
                parameter.grad.zero_() if grad is None else parameter.grad.copy_(grad)
        return [*(_tensors(own) | {"scale": ours}).values()], loss, graph


def _tensors(part: Prepared) -> dict[str, Tensor]:
    found = {f"inputs.{name}": tensor for name, tensor in part.inputs.items()}
    found |= {f"others.{name}": tensor for name, tensor in part.others.items()} | {"targets": part.targets}
    return found if part.mask is None else found | {"mask": part.mask}
